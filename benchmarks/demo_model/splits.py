"""Which scene seeds serve which purpose, so that nothing is ever tested on what it was trained or tuned on.

A scene is fully determined by its seed; every purpose has its own range of seeds:

    name             first seed   used                     purpose
    vision                    0   17,377 scenes            training the vision tower (stage 1)
    language          5,000,000   4,500 scenes             training projector and language model (stage 3)
    validation       10,000,000   48 scenes                accuracy printed while stage 1 runs
    report           20,000,000   about 5,700 scenes       the accuracies in the model card; seen during development
    clip_validation  20,500,000   400 one-object scenes    accuracy printed while stage 4 runs
    clip             30,000,000   2,000 one-object scenes  training the CLIP text tower (stage 4)
    quality          40,000,000   a few hundred scenes     the accuracy benchmark, standard scenes; never tune on these
    zero_shot        45,000,000   2,000 one-object scenes  the zero-shot benchmark; never tune on these
    quality_hard     50,000,000   a few hundred scenes     the accuracy benchmark, hard scenes; never tune on these
    examples         60,000,000   a few scenes             the example pictures that ship with the package
    tuning           70,000,000   any                      investigations and choices of parameters, standard scenes
    tuning_hard      80,000,000   any                      investigations and choices of parameters, hard scenes
    tests            90,000,000   a few scenes             automated tests
"""

FIRST_SEED = {
    "vision": 0,
    "language": 5_000_000,
    "validation": 10_000_000,
    "report": 20_000_000,
    "clip_validation": 20_500_000,
    "clip": 30_000_000,
    "quality": 40_000_000,
    "zero_shot": 45_000_000,
    "quality_hard": 50_000_000,
    "examples": 60_000_000,
    "tuning": 70_000_000,
    "tuning_hard": 80_000_000,
    "tests": 90_000_000,
}
