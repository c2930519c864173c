"""Fakes of other engines, after their protocols, with scores of :func:`fakes.fake_score`. An httpx transport without sockets."""

from __future__ import annotations

import asyncio
import json

import httpx

from support import fakes


class Engine:
    """One engine's ``/v1/models`` and scoring route. replies: sent first instead of scores, one per request."""

    def __init__(self, owner, *, pooling_task="classify", replies=(), refuses=None, reverse=False):
        self.owner, self.pooling_task, self.refuses, self.reverse = owner, pooling_task, refuses, reverse
        self.replies = list(replies)
        self.requests = []
        self.active = self.max_active = 0

    @property
    def transport(self):
        return httpx.MockTransport(self)

    async def __call__(self, request):
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        await asyncio.sleep(0.002)
        try:
            return self.reply(request)
        finally:
            self.active -= 1

    def reply(self, request):
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"object": "list", "data": [{"id": "served-name", "owned_by": self.owner}]})
        body = json.loads(request.content)
        self.requests.append((path, body))
        if self.replies:
            reply = self.replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            if reply is not None:
                return reply
        sequences = body.get("input_ids") or body.get("input")
        if self.refuses and any(map(self.refuses, sequences)):
            return httpx.Response(400, json={"error": {"message": "one is too long", "code": 400}})
        return self.scored(path, body, [fakes.fake_score(ids) for ids in sequences])

    def scored(self, path, body, scores):
        rows = None
        if self.owner == "sglang" and path == "/classify":
            rows = [{"embedding": [score], "meta_info": {}} for score in scores]
            return httpx.Response(200, json=rows)
        if self.owner == "vllm":
            assert body["use_activation"] is False and body.get("model") in (None, "served-name")
            if path == "/classify" and self.pooling_task == "classify":
                rows = [{"index": i, "label": "LABEL_0", "probs": [s], "num_classes": 1} for i, s in enumerate(scores)]
            elif path == "/pooling" and self.pooling_task == "token_classify":
                rows = [{"index": i, "object": "pooling", "data": [[9.0], [8.0], [s]]} for i, s in enumerate(scores)]
        if self.owner == "lmdeploy" and path == "/pooling":
            rows = [{"index": i, "object": "pooling", "data": s} for i, s in enumerate(scores)]
        if rows is None:
            return httpx.Response(404, json={"detail": "Not Found"})
        return httpx.Response(200, json={"object": "list", "data": rows[::-1] if self.reverse else rows})
