//! The gRPC contract: messages, clients and servers generated from `proto/`. No logic.
#![expect(missing_docs, reason = "the protos are documented, not the generated code")]
#![expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated code brings its own")]

/// What several services share.
pub mod common {
    pub mod v1 {
        tonic::include_proto!("waybill.common.v1");
    }
}

/// The write path.
pub mod ingestion {
    pub mod v1 {
        tonic::include_proto!("waybill.ingestion.v1");
    }
}

/// Embedding and search.
pub mod embedding {
    pub mod v1 {
        tonic::include_proto!("waybill.embedding.v1");
    }
}

/// Facts and entities.
pub mod extraction {
    pub mod v1 {
        tonic::include_proto!("waybill.extraction.v1");
    }
}

/// The outbox relay, for operators.
pub mod relay {
    pub mod v1 {
        tonic::include_proto!("waybill.relay.v1");
    }
}

/// The encoded `FileDescriptorSet` of every proto, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("waybill");
