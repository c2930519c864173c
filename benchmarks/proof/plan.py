"""All steps, in the order of their value."""

from __future__ import annotations

from functools import partial
from typing import Any

from proof.claims import fit_law
from proof.corpora import SAMPLES, make_corpora, make_init, make_pairs, preference_file, trajectory_file
from proof.discrimination import discriminate
from proof.levers import pull
from proof.policies import BOTH, GRPO, PROMPTS, WITHOUT_KL, best_of_n, compare_arms, make_tasks, reinforce
from proof.preferences import CLASSIFIER, calibrated, overoptimised, prefer, several_references, train_classifier
from proof.settings import Size
from proof.steps import Step
from proof.training import KINDS, REFERENCES, finetune, pretrain

HOURS = ("levers", "law", "rft")
"""Stages that need a GPU or hours: they run only if they are named."""
_MODEL = "model/config.json"


def steps_of(size: Size, seeds: tuple[int, ...]) -> list[Step]:
    """The steps of a size, each with the settings that decide its numbers."""
    model, corpus = size.model.model_dump(), size.corpus.model_dump(exclude={"workers", "pairs"})
    sets = tuple(trajectory_file(name) for name in size.corpus.sets)
    pairs = tuple(preference_file(name) for name in size.corpus.preferences)
    steps = [
        Step("init", "init", "the first layers of the language model", make_init, model, outputs=("lm/config.json",)),
        Step(
            "corpus", "corpus", "corpora of policies and of continuations of the same texts", make_corpora, corpus, data=sets,
            outputs=("corpus/polar/manifest.json", "corpus/rbs/manifest.json"),
        ),
        *_pretraining(size, seeds),
    ]  # fmt: skip
    models = tuple(f"pretrain-{kind}-{seed}" for kind in ("polar", "rbs") for seed in seeds)
    tests = {"comparisons": size.test_comparisons, "encoder": size.encoder, "seeds": list(seeds)}
    fine = tuple(f"finetune-{kind}-{seed}" for kind in KINDS for seed in seeds)
    several = {"arguments": size.references, "seed": seeds[0]}
    shared = {"encoder": size.encoder, "seeds": list(seeds)}
    return [
        *steps,
        Step("discrimination", "discrimination", "accuracy on unseen prompts and policies, by set and view", discriminate, tests,
             ("init", "corpus", *models)),
        Step("pairs", "pairs", "preference pairs, split by prompt", make_pairs, corpus | {"pairs": size.corpus.pairs},
             data=(*pairs, SAMPLES), outputs=("pairs/train.jsonl", "pairs/calibrate.jsonl", "pairs/test.jsonl")),
        *_finetuning(size, seeds),
        Step(CLASSIFIER, "classifier", "a stock classifier on the same pairs (needs TRL)", train_classifier,
             {"arguments": size.classifier}, ("init", "pairs"), outputs=(f"{CLASSIFIER}/config.json",)),
        Step("preferences", "preferences", "accuracy on held-out preferences, paired differences", prefer, shared,
             ("pairs", *fine), (CLASSIFIER,)),
        Step("references", "references", "what several references gain", several_references, several,
             (f"pretrain-polar-{seeds[0]}", f"finetune-polar-{seeds[0]}"), data=(sets[0], SAMPLES)),
        Step("calibration", "calibration", "are probabilities right on held-out pairs", calibrated, {"seeds": list(seeds)},
             ("pairs", *fine)),
        Step("overoptimisation", "overoptimisation", "best of n against gold values", overoptimised,
             shared | {"prompts": size.gold_prompts}, ("pairs", *fine),
             data=(*pairs, SAMPLES)),
        *(
            Step(f"lever-{name}", "levers", lever.about, partial(pull, name=name, lever=lever),
                 {"lever": lever.model_dump(), "seed": seeds[0], "pretrain": size.pretrain, "finetune": size.finetune},
                 ("init", "corpus", "pairs", f"finetune-polar-{seeds[0]}"), outputs=(f"levers/{name}/finetune/{_MODEL}",))
            for name, lever in size.levers.items()
        ),
        Step("law", "law", "scaling law on unseen policies; a GPU or hours", fit_law,
             {"law": size.law.model_dump(), "training": size.law_training}, ("init", "corpus")),
        *_policies(size, seeds),
    ]  # fmt: skip


def _pretraining(size: Size, seeds: tuple[int, ...]) -> list[Step]:
    """A step for each kind and seed. Continuations need the tokens of the model of policies, whose corpus they share."""
    settings: dict[str, Any] = {"training": size.pretrain, "identical_steps": size.identical_steps}
    return [
        Step(
            f"pretrain-{kind}-{seed}",
            "pretrain",
            "pre-training on policies" if kind == "polar" else "on continuations, with the tokens of policies",
            partial(pretrain, kind=kind, seed=seed),
            settings | {"kind": kind, "seed": seed},
            ("init", "corpus", *(["pretrain-polar-" + str(seed)] if kind == "rbs" else [])),
            outputs=(f"pretrain/{kind}-{seed}/{_MODEL}",),
        )
        for seed in seeds
        for kind in KINDS
        if kind != "none"
    ]


def _finetuning(size: Size, seeds: tuple[int, ...]) -> list[Step]:
    """A step for each start and seed, with references and without."""
    return [
        Step(
            f"finetune-{kind}-{seed}",
            "finetune",
            "fine-tuning of the language model" if kind == "none" else f"fine-tuning of {kind}, the same",
            partial(finetune, kind=kind, seed=seed),
            {"training": size.finetune, "kind": kind, "seed": seed},
            ("init", "pairs", *([] if kind == "none" else [f"pretrain-{kind}-{seed}"])),
            outputs=tuple(f"finetune/{kind}-{references}-{seed}/{_MODEL}" for references in REFERENCES),
        )
        for seed in seeds
        for kind in KINDS
    ]


def _policies(size: Size, seeds: tuple[int, ...]) -> list[Step]:
    """The tasks, the policies of each seed, and their comparison."""
    settings = {"overrides": size.rft.overrides, "encoder": size.encoder}
    tasks = size.rft.model_dump(include={"train_prompts", "held_out_prompts"}) | {"share": size.corpus.held_out_prompts}
    steps = [
        Step("rft-tasks", "rft", "training and held-out prompts of the policies", make_tasks, tasks, data=(PROMPTS,),
             outputs=("rft/train.jsonl", "rft/held_out.jsonl")),
    ]  # fmt: skip
    for seed in seeds:
        needs = ("init", "rft-tasks", f"finetune-polar-{seed}")
        own = settings | {"seed": seed}
        steps += [
            Step(f"rft-grpo-{seed}", "rft", "GRPO, and SFT on the same references (needs TRL)",
                 partial(reinforce, arm=GRPO, seed=seed), own, needs,
                 outputs=(f"rft/grpo-{seed}/policy", f"rft/grpo-{seed}/sft/policy")),
            Step(f"rft-both-{seed}", "rft", "GRPO from the policy of SFT", partial(reinforce, arm=BOTH, seed=seed), own,
                 (*needs, f"rft-grpo-{seed}"), outputs=(f"rft/sft-then-grpo-{seed}/policy",)),
            Step(f"rft-best-{seed}", "rft", "SFT on the best of n answers by the reward", partial(best_of_n, seed=seed),
                 own | {"samples": size.rft.samples}, needs, outputs=(f"rft/best-of-n-{seed}/sft/policy",)),
            Step(f"rft-without-kl-{seed}", "rft", "GRPO without KL, which must be warned about",
                 partial(reinforce, arm=WITHOUT_KL, seed=seed), own | {"without_kl": size.rft.without_kl}, needs,
                 outputs=(f"rft/without-kl-{seed}/policy",)),
        ]  # fmt: skip
    trained = tuple(step.name for step in steps)
    return [*steps, Step("rft", "rft", "all policies on held-out prompts, paired", compare_arms, {"seeds": list(seeds)}, trained)]
