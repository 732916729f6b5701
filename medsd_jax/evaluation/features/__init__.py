"""Networks that turn images into feature vectors, with the exact input chain of each reference.

layers         what the networks share
inception      InceptionV3, as in the FID literature and as in torchvision
densenet       DenseNet, as in torchvision and torchxrayvision, and with group norm for training
preprocessing  images of any size to a network's input, on the host
weights        torch's weight files to our parameters and back
"""
