import pytest
from support import official

from polar_rm.conversion.convert import convert


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return official.checkpoint(tmp_path_factory.mktemp("official") / "model")


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("native") / "model"
    convert(source, target)
    return target
