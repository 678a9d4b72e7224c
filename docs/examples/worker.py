#!/usr/bin/env python3
"""An example of a Waybill worker in Python: claims requests from Redis, "reads" them, hands answers in.

Its model is no model: it takes the first sentence of a passage for a fact. Put yours into read().
The contract, and how to install what this needs, stands in docs/workers.md.
"""

import argparse
import json
import os
import re
import signal
import threading
import uuid

import grpc
import redis
from google.protobuf.duration_pb2 import Duration

from waybill.extraction.v1 import extraction_pb2 as pb
from waybill.extraction.v1.extraction_pb2_grpc import ExtractionServiceStub

GROUP = "workers"
PRIORITIES = ("high", "normal", "low")
MODEL = "first-sentence"
POLL_S = 0.05  # between two looks into empty streams
RETRY_S = 0.5  # after Redis or the service was away
CALL_S = 20  # the longest call
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)

# Renews the idle time of a message, unless somebody else has it by now.
HEARTBEAT = """
local ours = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
return #ours > 0 and #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID') or 0
"""


class Stopping(Exception):
    """The process was asked to stop."""


def read(passage: pb.BeginRequestResponse) -> dict:
    """Answers by passage.answer_schema. A model would be asked passage.messages here."""
    kinds = passage.settings.fact_types
    sentence = re.search(r"\S.*?[.!?](?=\s|$)|\S.*", passage.text, re.DOTALL)
    if not sentence or (kinds and "statement" not in kinds):
        return {"facts": []}
    quote = sentence.group().strip()[:400]
    return {"facts": [{"kind": "statement", "statement": quote, "quote": quote, "confidence": 0.5, "entities": []}]}


class Worker:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        # Anew for each run: two workers of one name would take each other's messages for theirs.
        self.name = f"{args.name}-{uuid.uuid4()}"
        self.redis = redis.Redis.from_url(args.redis, decode_responses=True, socket_timeout=5)
        self.service = ExtractionServiceStub(grpc.insecure_channel(args.service))
        key = os.environ.get("WAYBILL_API_KEY")
        self.metadata = [("authorization", f"Bearer {key}")] if key else []
        self.heartbeat = self.redis.register_script(HEARTBEAT)
        self.stopping = threading.Event()
        self.next_takeover = {}

    def run(self) -> None:
        try:
            while True:
                try:
                    message = next(filter(None, map(self.claim, PRIORITIES)), None)
                except redis.RedisError as error:
                    print(f"redis: {error}", flush=True)
                    self.wait(RETRY_S)
                    continue
                if message:
                    self.handle(*message)
                self.wait(0 if message else POLL_S)
        except Stopping:
            print("stopped", flush=True)

    def claim(self, priority: str) -> tuple[str, str, str] | None:
        """Returns stream, message and request: one that a dead worker left, or else a new one."""
        stream = f"{self.args.prefix}:{{llm:{priority}}}:stream"
        try:
            # XAUTOCLAIM looks at a few messages a time, and says where to go on.
            start = self.next_takeover.get(stream, "0-0")
            start, messages, *_ = self.redis.xautoclaim(stream, GROUP, self.name, self.args.lease_ms, start, count=1)
            self.next_takeover[stream] = start
            if not messages:
                found = self.redis.xreadgroup(GROUP, self.name, {stream: ">"}, count=1)
                messages = found[0][1] if found else []
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            # From 0: what is there already is to be read too.
            self.redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
            return None
        for message_id, fields in messages:
            if fields and "request_id" in fields:
                return stream, message_id, fields["request_id"]
            self.redis.pipeline().xack(stream, GROUP, message_id).xdel(stream, message_id).execute()
        return None

    def handle(self, stream: str, message_id: str, request_id: str) -> None:
        ids = {"request_id": request_id, "message_id": message_id, "worker": self.name}
        ended = threading.Event()
        beating = threading.Thread(target=self.beat, args=(stream, message_id, ended), daemon=True)
        beating.start()
        try:
            passage = self.call(self.service.BeginRequest, pb.BeginRequestRequest(**ids))
            if not passage.wanted:
                return
            print(f"reading {request_id}, attempt {passage.attempt}", flush=True)
            self.wait(self.args.think)
            answer = json.dumps(read(passage))
            response = pb.SubmitResponseRequest(**ids, model=MODEL, answer_json=answer, prompt_version=MODEL)
            stored = self.call(self.service.SubmitResponse, response)
            print(f"{'done before' if stored.already_done else 'stored'} {request_id}", flush=True)
        except Stopping:
            # Costs no attempt, and the next worker need not wait for the lease to end.
            self.report(ids, pb.FAILURE_CLASS_THROTTLED, "the worker stops", Duration())
            raise
        except grpc.RpcError as error:
            print(f"refused {request_id}: {error.details()}", flush=True)
            # The message is somebody else's: nothing is left to do here.
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                self.report(ids, pb.FAILURE_CLASS_TRANSIENT, f"{error.code().name}: {error.details()}"[:500])
        except Exception as error:  # A model that fails must not end the worker.
            self.report(ids, pb.FAILURE_CLASS_TRANSIENT, repr(error)[:500])
        finally:
            ended.set()
            beating.join()

    def report(self, ids: dict, failure: int, message: str, retry_after: Duration | None = None) -> None:
        request = pb.ReportFailureRequest(**ids, message=message, model=MODEL, retry_after=retry_after)
        setattr(request, "class", failure)  # A word of Python's own.
        try:
            self.service.ReportFailure(request, timeout=CALL_S, metadata=self.metadata)
        except grpc.RpcError as error:
            # The lease ends by itself, and somebody else goes on.
            print(f"not reported: {error.details()}", flush=True)

    def beat(self, stream: str, message_id: str, ended: threading.Event) -> None:
        """Three beats a lease: one may fail. Whether the message was lost, the service says."""
        while not ended.wait(self.args.lease_ms / 3000):
            try:
                self.heartbeat(keys=[stream], args=[GROUP, self.name, message_id])
            except redis.RedisError as error:
                print(f"heartbeat: {error}", flush=True)

    def call(self, method, request):
        """Calls until the service is there. Each call may be made twice."""
        while True:
            try:
                return method(request, timeout=CALL_S, metadata=self.metadata)
            except grpc.RpcError as error:
                if error.code() not in AWAY:
                    raise
            self.wait(RETRY_S)

    def wait(self, seconds: float) -> None:
        if self.stopping.wait(seconds):
            raise Stopping


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379", help="redis.url of the service")
    parser.add_argument("--prefix", default="waybill", help="redis.prefix of the service")
    parser.add_argument("--service", default="127.0.0.1:7702", help="host and port of the extraction service")
    parser.add_argument("--lease-ms", type=int, default=30_000, help="extraction.reclaim_after_ms of the service")
    parser.add_argument("--name", default="python", help="how the worker's name begins")
    parser.add_argument("--think", type=float, default=0, help="seconds that the model pretends to need")
    worker = Worker(parser.parse_args())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stopping.set())
    print(f"{worker.name} works", flush=True)
    worker.run()


if __name__ == "__main__":
    main()
