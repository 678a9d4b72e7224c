//! Compiles the protos with protox, so that no system `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

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
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true).open_files(PROTOS)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Server reflection hands this file out. Encoded by the compiler: the descriptors as prost has
    // them know nothing of our own options, by which servers decide who may call.
    fs::write(out.join("waybill.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
