import httpx
import pytest

from polar_rm.common.http import message_of, retry_after


def test_retry_after_may_be_a_date():
    response = httpx.Response(429, headers={"Retry-After": "Wed, 21 Oct 2065 07:28:00 GMT"})
    assert retry_after(response) > 1e8
    assert retry_after(httpx.Response(429, headers={"Retry-After": "soon"})) is None


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_nobody_waits_for_ever(value):
    assert retry_after(httpx.Response(429, headers={"Retry-After": value})) is None


def test_the_servers_words_are_found_where_each_puts_them():
    for body in ({"error": {"message": "why"}}, {"error": "why"}, {"message": "why"}, {"detail": "why"}):
        assert message_of(httpx.Response(400, json=body)) == "why"
    for content in (b"<html>", b"[1]", b"", b"{}", b"[" * 200_000):
        assert message_of(httpx.Response(502, content=content)) is None
