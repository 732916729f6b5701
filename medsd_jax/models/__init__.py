"""U-Net, VAE, CLIP and BERT as NNX modules, with diffusers' and transformers' names."""
