"""A study of scaling laws: many small models, pretrained on text of a known entropy.

`source` draws the text, `grid` says which models see how much of it, `members` trains
those of one shape in one program, `pretrain` does what is missing of a study, and
`fits` says what law its runs follow.
"""
