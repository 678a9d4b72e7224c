//! The example client in Python, against a server that fails, for what no real one does on demand:
//! calls are retried as the service config says. `crates/waybill` runs it against the services.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use waybill_deploy_checks::workspace;

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn packages() -> PathBuf {
    std::env::var_os("WAYBILL_TEST_PYTHON_DIR").map_or_else(|| workspace().join("target/python"), PathBuf::from)
}

fn python(stubs: &Path) -> Command {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", format!("{}:{}", packages().display(), stubs.display()));
    python.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("WAYBILL_API_KEY");
    python
}

/// Makes the stubs, as docs/clients.md says.
fn make_stubs(stubs: &Path) {
    std::fs::create_dir_all(stubs).unwrap();
    let proto = workspace().join("proto");
    let mut protoc = python(stubs);
    protoc.current_dir(&proto).args(["-m", "grpc_tools.protoc", "--proto_path", "."]);
    protoc.arg(format!("--python_out={}", stubs.display())).arg(format!("--grpc_python_out={}", stubs.display()));
    for folder in std::fs::read_dir(proto.join("waybill")).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path().join("v1")).unwrap() {
            protoc.arg(file.unwrap().path().strip_prefix(&proto).unwrap());
        }
    }
    let output = protoc.output().unwrap();
    assert!(output.status.success(), "run `cargo xtask setup`: {}", String::from_utf8_lossy(&output.stderr));
}

struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
}

impl Server {
    fn start(stubs: &Path, failures: u32, tls: &[PathBuf]) -> Self {
        let script = workspace().join("crates/deploy-checks/tests/it/fake_server.py");
        let mut command = python(stubs);
        command.arg(script).args([KEY, &failures.to_string()]).args(tls).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        stdout.read_line(&mut port).unwrap();
        Self { child, stdout, address: format!("127.0.0.1:{}", port.trim()) }
    }

    /// Ends it, and returns how often each method was called.
    fn calls(mut self) -> String {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success());
        rest.trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ended by itself, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client(stubs: &Path, server: &Server, key: &str, more: &[(&str, &Path)]) -> Output {
    let document = stubs.join("note.md");
    std::fs::write(&document, "# Note\n\nThe clerk signs.\n").unwrap();
    let key_file = stubs.join("key");
    std::fs::write(&key_file, format!("{key}\n")).unwrap();
    let mut command = python(stubs);
    command.arg(workspace().join("docs/examples/client.py")).arg(&document).arg("who signs?");
    command.args(["--ingestion", &server.address, "--search", &server.address, "--api-key-file"]).arg(&key_file);
    for (option, value) in more {
        command.arg(option).arg(value);
    }
    command.output().unwrap()
}

#[test]
fn the_example_client_gets_by_a_server_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    make_stubs(folder.path());

    // Three attempts fail, and the fourth is the last there is.
    let server = Server::start(folder.path(), 3, &[]);
    let output = client(folder.path(), &server, KEY, &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = said.lines().collect();
    let expected = [
        "put note.md: version 1, 1 chunks",
        "found note.md 1.000: # Note The clerk signs.",
        "deleted note.md",
        "gone note.md",
    ];
    assert_eq!(lines, expected);
    assert_eq!(server.calls(), "calls CreateProject=4 DeleteSource=4 PutSource=4 Search=5");

    // A fourth failure is the caller's.
    let server = Server::start(folder.path(), 4, &[]);
    let output = client(folder.path(), &server, KEY, &[]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("UNAVAILABLE: attempt 4 fails"), "{output:?}");
    assert_eq!(server.calls(), "calls CreateProject=4");

    // Another key is refused, at the first attempt.
    let server = Server::start(folder.path(), 0, &[]);
    let output = client(folder.path(), &server, "another", &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("UNAUTHENTICATED"), "{output:?}");
    assert_eq!(server.calls(), "calls");
}

/// An authority, and the files of what it signed: `ca.crt`, `<name>.crt` and `<name>.key`.
fn certificates(folder: &Path, names: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // One that is called as what it signs would be taken for it.
    authority.distinguished_name.push(DnType::CommonName, "authority");
    std::fs::write(folder.join("ca.crt"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    for name in names {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([(*name).to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn the_example_client_speaks_tls() {
    let folder = tempfile::tempdir().unwrap();
    make_stubs(folder.path());
    certificates(folder.path(), &["waybill.test", "client"]);
    let file = |name: &str| folder.path().join(name);
    let of_server = ["waybill.test.key", "waybill.test.crt", "ca.crt"].map(file);
    let server = Server::start(folder.path(), 0, &of_server);
    let [authority, certificate, key] = ["ca.crt", "client.crt", "client.key"].map(file);
    let name = Path::new("waybill.test");
    let trusting = [("--ca-file", authority.as_path()), ("--server-name", name)];
    let known = [&trusting[..], &[("--cert-file", certificate.as_path()), ("--key-file", key.as_path())]].concat();
    let output = client(folder.path(), &server, KEY, &known);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("gone note.md\n"), "{output:?}");

    // Without a certificate, and without TLS, nobody gets in.
    for options in [&trusting[..], &[]] {
        let output = client(folder.path(), &server, KEY, options);
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
    assert_eq!(server.calls(), "calls CreateProject=1 DeleteSource=1 PutSource=1 Search=2");
}
