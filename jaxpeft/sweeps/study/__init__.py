"""A study of scaling laws: many small models, pretrained on text of a known entropy.

`source` draws the text. `grid` says which models are trained on how much of it.
`members` trains the models of one shape in one program. `pretrain` trains the missing
runs of a study. `fits` fits laws to its runs. `finetune` is a study of LoRA's rank and
the number of rows. `record` keeps the measurements.
"""
