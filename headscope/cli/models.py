"""`headscope models`: what comes with headscope."""

from __future__ import annotations

from headscope.cli.options import Json


def models(as_json: Json = False) -> None:
    """List the bundled models, their coders, and input sets."""
    from headscope.cli.screen import print_json, print_lines, print_table
    from probes.bundled import bundled_coders, bundled_models, bundled_sets

    found, coders, sets = bundled_models(), bundled_coders(), bundled_sets()
    if as_json:
        print_json(
            {
                "models": {
                    name: {
                        "kind": model.kind,
                        "class": model.architecture,
                        "default_set": model.default_set,
                        "about": model.about,
                        "path": str(model.path),
                    }
                    for name, model in found.items()
                },
                "coders": {
                    name: {
                        "model": coder.model,
                        "site": coder.site,
                        "coder": coder.architecture,
                        "latents": coder.details.get("latents"),
                        "about": coder.about,
                        "path": str(coder.path),
                    }
                    for name, coder in coders.items()
                },
                "sets": {
                    name: {"kind": s.kind, "n": s.n, "about": s.about, "path": str(s.path)}
                    for name, s in sets.items()
                },
            }
        )
        return
    print_table(
        "Models",
        ["name", "kind", "default set", "about"],
        [[m.name, m.kind, m.default_set, m.about] for m in found.values()],
    )
    print_lines("")
    print_table(
        "Coders (headscope sae)",
        ["name", "site", "coder", ">latents", "about"],
        [
            [c.name, c.site, c.architecture, f"{c.details.get('latents', 0):,}", c.about]
            for c in coders.values()
        ],
    )
    print_lines("")
    print_table(
        "Input sets",
        ["name", "kind", ">n", "about"],
        [[s.name, s.kind, str(s.n), s.about] for s in sets.values()],
    )
