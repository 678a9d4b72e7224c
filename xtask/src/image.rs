//! `cargo xtask image`: does what the Dockerfile says, as far as a machine without a registry of
//! images can.
//!
//! The build's command runs here, over the same files and no others. The runtime's stage is built
//! by buildah, over a base of this machine's C library in place of the published one, and run as
//! the user and with the rights that it will have. Slow: a whole release build.

use std::{
    fs::{self, FileTimes},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{sh, system};

const DOCKERFILE: &str = "deploy/docker/Dockerfile";
const IGNORE: &str = "deploy/docker/Dockerfile.dockerignore";

/// What the image made here is called.
const TAG: &str = "localhost/waybill:xtask";

/// The user of the image.
const USER: &str = "65532:65532";

/// Arguments of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// Take this program and build none: seconds rather than half an hour
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Builds the image's parts and runs the program in it.
///
/// # Errors
/// The first step that fails.
pub(crate) fn run(args: &ImageArgs) -> anyhow::Result<()> {
    system::ensure_buildah()?;
    let folder = sh::target_dir().join("image");
    let dockerfile = read(DOCKERFILE)?;

    sh::step("copying what the Dockerfile's context has");
    let context = folder.join("context");
    let count = copy_context(&context)?;
    sh::print(&format!("context: {count} files\n"))?;

    let program = folder.join("waybill");
    match &args.binary {
        Some(binary) => drop(fs::copy(binary, &program).with_context(|| format!("copy {}", binary.display()))?),
        None => {
            let command = build_command(&dockerfile, &program).context("find the build's command in the Dockerfile")?;
            sh::step("building as the Dockerfile does (the first time: half an hour on 2 cores)");
            // By a shell, as there.
            let mut shell = sh::cargo_environment(Command::new("sh"));
            sh::run(shell.current_dir(&context).args(["-ec", &command]).env_remove("CARGO_TARGET_DIR"))?;
        }
    }
    let size = fs::metadata(&program).context("look at the program")?.len();
    sh::print(&format!("program: {} MB\n", size >> 20))?;

    sh::step("building the runtime's stage with buildah, over this machine's C library");
    make_base(&folder, &program, base_image(&dockerfile).context("find the runtime's base in the Dockerfile")?)?;
    fs::write(folder.join("Dockerfile"), runtime_alone(&dockerfile).context("find the runtime's stage")?)?;
    sh::run(buildah(&folder).args(["bud", "--isolation", "chroot", "--pull-never", "--tag", TAG]).arg(&folder))?;

    sh::step("running the program in it");
    let container = sh::output(buildah(&folder).args(["from", "--pull-never", TAG]))?;
    let container = container.trim();
    let tried = try_out(&folder, container);
    sh::run(buildah(&folder).args(["rm", container]))?;
    tried
}

/// Runs what needs no store, and looks for what should not be there.
fn try_out(folder: &Path, container: &str) -> anyhow::Result<()> {
    let program = |arguments: &[&str]| {
        let mut run = buildah(folder);
        run.args(["run", "--isolation", "chroot", "--user", USER, "--cap-drop", "all", container, "--"]);
        run.arg("/usr/local/bin/waybill").args(arguments);
        sh::output(&mut run)
    };
    sh::print(&program(&["--version"])?)?;
    ensure!(program(&["config"])?.contains("[database]"), "`waybill config` says nothing of a database");
    let mut shell = buildah(folder);
    shell.args(["run", "--isolation", "chroot", container, "--", "/bin/sh", "-c", "true"]);
    ensure!(sh::output(&mut shell).is_err(), "there is a shell in the image");

    let inspected = sh::output(buildah(folder).args(["inspect", "--type", "image", TAG]))?;
    let image: serde_json::Value = serde_json::from_str(&inspected).context("read what buildah says")?;
    let config = image.pointer("/OCIv1/config").context("an image without a configuration")?;
    ensure!(config.get("User").and_then(|user| user.as_str()) == Some(USER), "another user: {config}");
    let entry = serde_json::json!(["/usr/local/bin/waybill"]);
    ensure!(config.get("Entrypoint") == Some(&entry), "another entry point: {config}");
    sh::print("image: runs as 65532 without capabilities and without a shell\n")
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(sh::root().join(path)).with_context(|| format!("read {path}"))
}

/// Prepares a call of buildah that keeps everything under `folder`, and needs no daemon.
fn buildah(folder: &Path) -> Command {
    let mut command = Command::new("buildah");
    command.arg("--root").arg(folder.join("store")).arg("--runroot").arg(folder.join("run"));
    command.args(["--storage-driver", "vfs"]).current_dir(folder);
    command
}

/// Makes an image of the libraries that the program loads, under the name of the published base.
fn make_base(folder: &Path, program: &Path, name: &str) -> anyhow::Result<()> {
    let root = folder.join("base");
    if root.exists() {
        fs::remove_dir_all(&root).context("remove the old base")?;
    }
    let listed = sh::output(Command::new("ldd").arg(program))?;
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for library in libraries {
        let target = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().context("a library without a folder")?)?;
        fs::copy(library, &target).with_context(|| format!("copy {library}"))?;
    }
    fs::write(folder.join("Basefile"), "FROM scratch\nCOPY base/ /\n")?;
    let mut bud = buildah(folder);
    bud.args(["bud", "--isolation", "chroot", "--tag", name, "--file", "Basefile"]).arg(folder);
    sh::output(&mut bud).map(drop)
}

/// Copies the files that Docker would send, and removes those that it no longer would.
fn copy_context(context: &Path) -> anyhow::Result<usize> {
    // What was built last time stays.
    for entry in fs::read_dir(context).into_iter().flatten() {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == "target") {
            continue;
        }
        if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    let files = context_files()?;
    for file in &files {
        let target = context.join(file);
        fs::create_dir_all(target.parent().context("a file without a folder")?)?;
        let source = sh::root().join(file);
        fs::copy(&source, &target).with_context(|| format!("copy {file}"))?;
        // Its time, too: cargo would build everything again.
        let times = FileTimes::new().set_modified(fs::metadata(&source)?.modified()?);
        fs::File::options().append(true).open(&target)?.set_times(times)?;
    }
    Ok(files.len())
}

/// Lists the files of the repository that the Dockerfile's context has.
fn context_files() -> anyhow::Result<Vec<String>> {
    let rules = read(IGNORE)?;
    let mut git = Command::new("git");
    git.current_dir(sh::root()).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let listed = sh::output(&mut git).context("list the repository's files")?;
    let files = listed.split('\0').filter(|path| !path.is_empty() && sh::root().join(path).is_file());
    Ok(files.filter(|path| is_in_context(&rules, path)).map(str::to_owned).collect())
}

/// Whether Docker would send a file: of the rules that fit it or a folder it is in, the last decides.
fn is_in_context(rules: &str, path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let mut is_sent = true;
    for rule in rules.lines().map(str::trim).filter(|rule| !rule.is_empty() && !rule.starts_with('#')) {
        let (pattern, sends) = rule.strip_prefix('!').map_or((rule, false), |pattern| (pattern, true));
        let pattern: Vec<&str> = pattern.split('/').collect();
        if (1..=parts.len()).any(|count| parts.get(..count).is_some_and(|head| matches(&pattern, head))) {
            is_sent = sends;
        }
    }
    is_sent
}

fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => {
            (0..=path.len()).any(|skip| path.get(skip..).is_some_and(|tail| matches(rest, tail)))
        }
        (Some((&"*", rest)), Some((_, tail))) => matches(rest, tail),
        (Some((first, rest)), Some((part, tail))) => first == part && matches(rest, tail),
        _ => false,
    }
}

/// Joins lines that end with a backslash, and leaves comments out.
fn instructions(dockerfile: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut open = String::new();
    for line in dockerfile.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_suffix('\\') {
            Some(part) => open.push_str(part),
            None => all.push(std::mem::take(&mut open) + line),
        }
    }
    all
}

/// Finds the command that builds, and has it put the program where we want it.
fn build_command(dockerfile: &str, program: &Path) -> Option<String> {
    let run =
        instructions(dockerfile).into_iter().find(|line| line.starts_with("RUN ") && line.contains("cargo build"))?;
    let words = run.split_whitespace().skip(1).skip_while(|word| word.starts_with("--mount="));
    let command = words.collect::<Vec<_>>().join(" ");
    Some(command.replace("--output-file=/waybill", &format!("--output-file='{}'", program.display())))
}

fn base_image(dockerfile: &str) -> Option<&str> {
    dockerfile.lines().rfind(|line| line.starts_with("FROM "))?.split_whitespace().nth(1)
}

/// Returns the last stage as it is, after one that has the program and nothing else.
fn runtime_alone(dockerfile: &str) -> Option<String> {
    let last = dockerfile.rfind("\nFROM ")?;
    Some(format!("FROM scratch AS build\nCOPY waybill /waybill\n{}", dockerfile.get(last..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_fits_decides() {
        let rules = "# x\n*\n!crates\n!Cargo.toml\ncrates/*/tests\n**/target";
        for (path, sent) in [
            ("Cargo.toml", true),
            ("README.md", false),
            ("crates/a/src/lib.rs", true),
            ("crates/a/tests/it/main.rs", false),
            ("crates/a/target/x", false),
            ("docs/Cargo.toml", false),
        ] {
            assert_eq!(is_in_context(rules, path), sent, "{path}");
        }
    }

    /// Docker has nothing else: a folder that is forgotten there breaks the build, there alone.
    #[test]
    fn the_context_has_all_that_the_build_reads() {
        let files = context_files().unwrap();
        let has = |path: &str| files.iter().any(|file| file == path);
        for path in ["Cargo.toml", "Cargo.lock", "proto/waybill/relay/v1/relay.proto", "clippy.toml"] {
            let is_there = has(path) || !sh::root().join(path).exists();
            assert!(is_there, "{path} is not in the context");
        }
        assert!(files.iter().any(|file| file.starts_with("migrations/")));
        assert!(files.iter().any(|file| file.starts_with("crates/storage/.sqlx/")));
        for file in &files {
            let is_needed = !file.contains("/tests/") && !file.starts_with("docs/") && !file.starts_with("deploy/");
            assert!(is_needed, "{file} is in the context");
        }
        let folder = std::env::temp_dir().join(format!("xtask-image-{}", std::process::id()));
        copy_context(&folder).unwrap();
        // Manifests must be whole without the tests that they name.
        let mut metadata = sh::cargo();
        metadata.current_dir(&folder).args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
        let found = sh::output(&mut metadata);
        fs::remove_dir_all(&folder).unwrap();
        found.unwrap();
    }

    #[test]
    fn the_dockerfile_has_the_parts_that_are_looked_for() {
        let dockerfile = read(DOCKERFILE).unwrap();
        let command = build_command(&dockerfile, Path::new("out/waybill")).unwrap();
        assert!(command.starts_with("cargo build --release --locked --package waybill"), "{command}");
        assert!(command.contains("--no-default-features"), "{command}");
        assert!(command.ends_with("--output-file='out/waybill' target/release/waybill"), "{command}");
        assert!(base_image(&dockerfile).unwrap().contains("distroless"));
        let alone = runtime_alone(&dockerfile).unwrap();
        assert_eq!(alone.matches("FROM ").count(), 2, "{alone}");
    }
}
