//! Compiles the protos with protox, so that no system `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 6] = [
    "waybill/common/v1/access.proto",
    "waybill/common/v1/common.proto",
    "waybill/ingestion/v1/ingestion.proto",
    "waybill/embedding/v1/embedding.proto",
    "waybill/extraction/v1/extraction.proto",
    "waybill/relay/v1/relay.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(PROTOS, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Server reflection hands this file out.
    fs::write(out.join("waybill.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
