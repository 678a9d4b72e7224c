#!/usr/bin/env python3
"""An example of a Waybill client in Python: puts a document, finds it, and deletes it.

It reads its own write: the search waits for the document by the token that the put returned. What is
retried, and how long a call may take, stands in deploy/grpc/service-config.json. How to install what
this needs and to make the stubs stands in docs/clients.md.
"""

import argparse
import collections
import os
import pathlib
import sys
import uuid

import grpc

from waybill.embedding.v1 import embedding_pb2 as embedding
from waybill.embedding.v1.embedding_pb2_grpc import SearchServiceStub
from waybill.ingestion.v1 import ingestion_pb2 as ingestion
from waybill.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub

SERVICE_CONFIG = pathlib.Path(__file__).resolve().parents[2] / "deploy/grpc/service-config.json"
PUT_S = 20
SEARCH_S = 30  # waiting for the index included
MEDIA_TYPES = {
    ".html": ingestion.MEDIA_TYPE_HTML,
    ".htm": ingestion.MEDIA_TYPE_HTML,
    ".md": ingestion.MEDIA_TYPE_MARKDOWN,
}


class WithKey(grpc.UnaryUnaryClientInterceptor):
    """Shows the API key with every call."""

    Details = collections.namedtuple(
        "Details", "method timeout metadata credentials wait_for_ready compression"
    )

    class Call(Details, grpc.ClientCallDetails):
        """What gRPC wants: its own class, with values."""

    def __init__(self, key: str) -> None:
        self.header = ("authorization", f"Bearer {key}")

    def intercept_unary_unary(self, continuation, details, request):
        metadata = [*(details.metadata or ()), self.header]
        call = self.Call(
            details.method, details.timeout, metadata, details.credentials,
            details.wait_for_ready, details.compression,
        )
        return continuation(call, request)


def connect(target: str, args: argparse.Namespace, key: str) -> grpc.Channel:
    """Opens a channel: with TLS if an authority or a certificate is named."""
    options = [
        ("grpc.service_config", SERVICE_CONFIG.read_text()),
        # Answers may carry whole documents.
        ("grpc.max_receive_message_length", 64 << 20),
    ]
    if args.server_name:
        options.append(("grpc.ssl_target_name_override", args.server_name))
    if args.tls or args.ca_file or args.cert_file:
        read = lambda path: pathlib.Path(path).read_bytes() if path else None
        credentials = grpc.ssl_channel_credentials(
            root_certificates=read(args.ca_file),
            private_key=read(args.key_file),
            certificate_chain=read(args.cert_file),
        )
        channel = grpc.secure_channel(target, credentials, options)
    else:
        channel = grpc.insecure_channel(target, options)
    return grpc.intercept_channel(channel, WithKey(key)) if key else channel


class Client:
    """What programs do most, in the words of the services."""

    def __init__(self, args: argparse.Namespace) -> None:
        key = pathlib.Path(args.api_key_file).read_text().strip() if args.api_key_file else ""
        key = key or os.environ.get("WAYBILL_API_KEY", "")
        self.write = IngestionServiceStub(connect(args.ingestion, args, key))
        self.read = SearchServiceStub(connect(args.search, args, key))
        self.project = args.project

    def ensure_project(self) -> None:
        try:
            self.write.CreateProject(ingestion.CreateProjectRequest(name=self.project))
        except grpc.RpcError as error:
            # Somebody made it, perhaps we ourselves in an attempt whose answer was lost.
            if error.code() != grpc.StatusCode.ALREADY_EXISTS:
                raise

    def put(self, uri: str, body: bytes, media_type: int) -> ingestion.PutSourceResponse:
        request = ingestion.PutSourceRequest(
            project=self.project, uri=uri, media_type=media_type, body=body,
            # The same for every attempt, so that the second is answered as the first was.
            request_id=str(uuid.uuid4()),
        )
        request.metadata.update({"from": "client.py"})
        return self.write.PutSource(request, timeout=PUT_S)

    def search(self, query: str, *tokens: str) -> embedding.SearchResponse:
        request = embedding.SearchRequest(project=self.project, query=query, at_least_as_fresh=tokens)
        return self.read.Search(request, timeout=SEARCH_S)

    def delete(self, uri: str) -> str:
        """Deletes a source, and returns the token of that; nothing if it was gone before."""
        try:
            return self.write.DeleteSource(
                ingestion.DeleteSourceRequest(project=self.project, uri=uri)
            ).freshness_token
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return ""


def run(args: argparse.Namespace) -> None:
    client = Client(args)
    client.ensure_project()
    path = pathlib.Path(args.file)
    media_type = MEDIA_TYPES.get(path.suffix.lower(), ingestion.MEDIA_TYPE_TEXT)
    put = client.put(path.name, path.read_bytes(), media_type)
    print(f"put {path.name}: version {put.version}, {put.chunk_count} chunks", flush=True)

    answer = client.search(args.query, put.freshness_token)
    for hit in answer.hits:
        text = " ".join(hit.text.split())[:80]
        print(f"found {hit.source_uri} {hit.score:.3f}: {text}", flush=True)
    if not any(hit.source_uri == path.name for hit in answer.hits):
        sys.exit(f"{path.name} is not among {len(answer.hits)} hits")
    if args.keep:
        return

    token = client.delete(path.name)
    print(f"deleted {path.name}", flush=True)
    # A search never shows what was deleted before it began; by the token, the index has it too.
    answer = client.search(args.query, *filter(None, [token]))
    if any(hit.source_uri == path.name for hit in answer.hits):
        sys.exit(f"{path.name} was deleted, and is found")
    print(f"gone {path.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the document: text, Markdown (.md) or HTML (.html)")
    parser.add_argument("query", help="what to search for")
    parser.add_argument("--project", default="default", help="made if there is none of that name")
    parser.add_argument("--ingestion", default="127.0.0.1:7701", help="host and port of the ingestion service")
    parser.add_argument("--search", default="127.0.0.1:7703", help="host and port of the search service")
    parser.add_argument("--keep", action="store_true", help="leave the document there")
    parser.add_argument("--api-key-file", help="a file with the API key; else WAYBILL_API_KEY")
    parser.add_argument("--tls", action="store_true", help="speak TLS, and trust the usual authorities")
    parser.add_argument("--ca-file", help="speak TLS, and trust this authority")
    parser.add_argument("--cert-file", help="the certificate to show")
    parser.add_argument("--key-file", help="its private key")
    parser.add_argument("--server-name", help="the name in the server's certificate, if it is not the host's")
    try:
        run(parser.parse_args())
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
