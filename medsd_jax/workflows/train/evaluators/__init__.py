"""Metrics during training, one class in one file each; a recipe names them in `evaluation.metrics`.

evaluator         what every one is, and what a run shares with it
registry          the names of those below, and how one of your own is found
validation_loss   the loss of the validation images
distances         FID, KID, precision and recall of sampled images against the validation split
prompt_accuracy   how often a classifier sees what a prompt asks for

One of your own is a class in a file:

    from medsd_jax.workflows.train.evaluators.evaluator import Evaluator

    class Brightness(Evaluator):
        scalars = {"brightness": True}  # larger is better

        def __call__(self, params, step):
            yield "brightness", self.run.sample(params, self.run.captions()).mean()

and an entry in a recipe: ``config.evaluation.metrics = ("fid", "brightness.py:Brightness")``. Its
scalars go where the others go, and `evaluation.keep_best` takes any of them.
"""
