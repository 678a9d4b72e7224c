"""Stands for the services where the example client is tried: keeps sources in memory, fails each
method's first calls with UNAVAILABLE, and wants an API key."""

import collections
import concurrent.futures
import sys

import grpc

from waybill.embedding.v1 import embedding_pb2 as embedding
from waybill.embedding.v1 import embedding_pb2_grpc as embedding_grpc
from waybill.ingestion.v1 import ingestion_pb2 as ingestion
from waybill.ingestion.v1 import ingestion_pb2_grpc as ingestion_grpc

KEY, FAILURES = sys.argv[1], int(sys.argv[2])
SOURCES = {}
REQUEST_IDS = set()
CALLS = collections.Counter()


def enter(name, context):
    if ("authorization", f"Bearer {KEY}") not in [(item.key, item.value) for item in context.invocation_metadata()]:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no key")
    CALLS[name] += 1
    if CALLS[name] <= FAILURES:
        context.abort(grpc.StatusCode.UNAVAILABLE, f"attempt {CALLS[name]} fails")


class Ingestion(ingestion_grpc.IngestionServiceServicer):
    def CreateProject(self, request, context):
        enter("CreateProject", context)
        # As if the first attempt had worked, and its answer was lost.
        context.abort(grpc.StatusCode.ALREADY_EXISTS, "it is there")

    def PutSource(self, request, context):
        REQUEST_IDS.add(request.request_id)
        enter("PutSource", context)
        SOURCES[request.uri] = request.body.decode()
        return ingestion.PutSourceResponse(version=1, chunk_count=1, freshness_token="put")

    def DeleteSource(self, request, context):
        enter("DeleteSource", context)
        del SOURCES[request.uri]
        return ingestion.DeleteSourceResponse(freshness_token="delete")


class Search(embedding_grpc.SearchServiceServicer):
    def Search(self, request, context):
        enter("Search", context)
        assert list(request.at_least_as_fresh) in (["put"], ["delete"]), request
        hits = [embedding.Hit(source_uri=uri, text=text, score=1) for uri, text in SOURCES.items()]
        return embedding.SearchResponse(hits=hits)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
ingestion_grpc.add_IngestionServiceServicer_to_server(Ingestion(), server)
embedding_grpc.add_SearchServiceServicer_to_server(Search(), server)
if len(sys.argv) > 3:
    key, certificate, authority = (open(path, "rb").read() for path in sys.argv[3:6])
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
# Ends with whoever started it.
sys.stdin.read()
assert len(REQUEST_IDS) <= 1 and "" not in REQUEST_IDS, "attempts of a put have one request_id in common"
print("calls", *(f"{name}={count}" for name, count in sorted(CALLS.items())), flush=True)
