"""Passes and preparation on models of a few nodes, and how often graphs are read."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from xattn_export.graph import stored_weights
from xattn_export.graph.editing import graph_parts
from xattn_export.quantize.base import prepared as prepared_graphs
from xattn_export.quantize.base.layers import find_layers
from xattn_export.quantize.base.options import Options
from xattn_export.quantize.base.passing import Assignment, Draft, Observed
from xattn_export.quantize.base.prepared import prepare_graph, roles_of
from xattn_runtime.bundle.folder import open_bundle


@pytest.fixture(scope="session")
def passed():
    """`passed(model, *passes)`: the draft after passes over all layers of a model, which stays as it is."""

    def run(model, *passes, options=None, means=None):
        before = model.SerializeToString(deterministic=True)
        draft = Draft(graph_parts(model), Observed(means=means or {}))
        assignment = Assignment(find_layers(draft.graph), options or Options())
        for one in passes:
            draft = one.run(draft, assignment)
        assert model.SerializeToString(deterministic=True) == before
        return draft

    return run


@pytest.fixture
def prepared(tmp_path):
    """`prepared(model)`: as it would be if it had been read from a bundle."""
    return lambda model: prepare_graph("decoder", tmp_path / "decoder.onnx", model)


@pytest.fixture(scope="session")
def reads():
    """`reads(bundle)`: a context that counts how often each graph of a bundle is read, mapped and prepared in it."""

    @contextmanager
    def counted(bundle):
        counts = Counter()
        names = {path.resolve(): path.name for path in (bundle / "graphs").iterdir()}

        def counting(function, name_of):
            def count(*arguments, **options):
                if (name := name_of(*arguments)) is not None:
                    counts[name] += 1
                return function(*arguments, **options)

            return count

        with pytest.MonkeyPatch.context() as patch:
            for module, name, name_of in (
                (onnx, "load_model", lambda file, *rest: names.get(Path(file).resolve())),
                (stored_weights, "_mapped", lambda folder, location: names.get((folder / location).resolve())),
                (prepared_graphs, "prepare_products", lambda graph: f"prepared {graph.frame.graph.name}"),
            ):
                patch.setattr(module, name, counting(getattr(module, name), name_of))
            yield counts

    return counted


@pytest.fixture(scope="session")
def once():
    """`once(bundle)`: what `reads` counts where each graph that is quantized is read, mapped and prepared once."""

    def expected(bundle):
        opened = open_bundle(bundle)
        files = [opened.file(opened.manifest.graphs[role].file) for role in roles_of(opened)]
        weights = [file.with_name(f"{file.name}.data") for file in files]
        graphs = Counter(f"prepared {onnx.load(file, load_external_data=False).graph.name}" for file in files)
        return graphs + Counter(path.name for path in (*files, *weights) if path.exists())

    return expected
