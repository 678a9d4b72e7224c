//! The example client in Python, against the services: it puts, finds what it put, and deletes.

use std::path::{Path, PathBuf};

use waybill_testkit::{Program, psql};

use crate::world::{PATIENCE, World};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// Every proto, as protoc wants them: those that the client imports import others.
fn protos(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for package in std::fs::read_dir(folder.join("waybill")).unwrap() {
        for file in std::fs::read_dir(package.unwrap().path().join("v1")).unwrap() {
            files.push(file.unwrap().path().strip_prefix(folder).unwrap().display().to_string());
        }
    }
    files.sort();
    files
}

/// Runs Python with the packages of `docs/examples/requirements.txt` and the stubs in `stubs`.
fn python(stubs: &Path, args: &[String]) -> Program {
    let packages =
        std::env::var_os("WAYBILL_TEST_PYTHON_DIR").map_or_else(|| workspace().join("target/python"), PathBuf::from);
    assert!(packages.join("grpc_tools").is_dir(), "{} lacks gRPC: run `cargo xtask setup`", packages.display());
    let path = format!("{}:{}", packages.display(), stubs.display());
    let variables = [("PYTHONPATH", path.as_str()), ("PYTHONDONTWRITEBYTECODE", "1")];
    Program::start("python3", args, variables).unwrap()
}

async fn make_stubs(stubs: &Path) {
    std::fs::create_dir_all(stubs).unwrap();
    let folder = workspace().join("proto");
    let mut args: Vec<String> = ["-m", "grpc_tools.protoc", "--proto_path"].map(str::to_owned).into();
    args.push(folder.display().to_string());
    args.push(format!("--python_out={}", stubs.display()));
    args.push(format!("--grpc_python_out={}", stubs.display()));
    args.extend(protos(&folder));
    let mut protoc = python(stubs, &args);
    assert!(protoc.wait(PATIENCE).await.unwrap().success(), "{:?}", protoc.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_python_reads_its_own_write() {
    let world = World::start().await;
    let stubs = world.dir.path().join("stubs");
    make_stubs(&stubs).await;
    let note = world.dir.path().join("note.md");
    std::fs::write(&note, "# Night shift\n\nThe clerk at the gate signs for the delivery.\n").unwrap();

    let client = |more: &[&str]| {
        let script = workspace().join("docs/examples/client.py");
        let mut args = vec![script.display().to_string(), note.display().to_string()];
        args.push("who signs for the delivery?".to_owned());
        args.extend(["--project", "python"].map(str::to_owned));
        args.extend(["--ingestion".to_owned(), format!("127.0.0.1:{}", world.ports.ingestion)]);
        args.extend(["--search".to_owned(), format!("127.0.0.1:{}", world.ports.embedding)]);
        args.extend(more.iter().map(|word| (*word).to_owned()));
        python(&stubs, &args)
    };
    // Twice: the project is there then, and the document was deleted in between.
    for _ in 0..2 {
        let mut run = client(&[]);
        assert!(run.wait(PATIENCE).await.unwrap().success(), "{:?}", run.output());
        let output = run.output();
        let begins: Vec<_> = output.iter().map(|line| line.split([' ', ':']).next().unwrap_or_default()).collect();
        assert_eq!(begins, ["put", "found", "deleted", "gone"], "{output:#?}");
        assert!(output[1].contains("The clerk at the gate signs"), "{output:#?}");
    }
    let left = "COPY (SELECT count(*) FROM source) TO STDOUT";
    assert_eq!(psql(&world.db.url, left).await.unwrap().trim(), "0");

    let mut run = client(&["--keep"]);
    assert!(run.wait(PATIENCE).await.unwrap().success(), "{:?}", run.output());
    assert_eq!(psql(&world.db.url, left).await.unwrap().trim(), "1");
}
