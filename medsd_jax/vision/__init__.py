"""Networks that turn images into feature vectors, with the exact input chain of each reference.

layers               what the convolutional networks share
inception            InceptionV3 of the FID literature
densenet             DenseNet, as in torchvision and torchxrayvision; with group norm for training
clip_vision          CLIP's image tower, as in transformers
dinov2               DINOv2, as in transformers: RAD-DINO
positions            position embeddings for images of another size
preprocessing        images of any size to a network's input, on the host
image_processor      the same, as a preprocessor_config.json states it
weights              torch's weight files to our parameters
transformers_folder  image towers from a folder of transformers
"""
