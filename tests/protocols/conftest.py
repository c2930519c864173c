import pytest
from support import fakes
from support.scored_items import ENCODER


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        yield address


@pytest.fixture
def post(url):
    def send(path, body, status=200):
        reply = fakes.HTTP.post(url + path, json=body, timeout=60)
        assert reply.status_code == status, reply.text
        return reply.json()

    return send
