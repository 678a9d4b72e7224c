//! Transactions that stay open, as a forgotten session keeps them.

use std::process::Stdio;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{ChildStdin, Command},
};
use waybill_local_stores::PostgresBinaries;

use crate::{
    PROJECT,
    oracle::{Content, Oracle, State},
};

/// What `psql` prints when the rows are written, and when they are committed.
const OPEN: &str = "transaction is open";
const COMMITTED: &str = "transaction is committed";

/// Writes a source with a chunk, past all services, in a transaction that is held open for as
/// long as `held` takes. Says how it ended: committed, aborted or unclear.
///
/// # Errors
/// If `psql` can't be run.
pub(crate) async fn hold(
    url: &str,
    oracle: &Oracle,
    uri: &str,
    commits: bool,
    held: impl Future<Output = ()>,
) -> anyhow::Result<&'static str> {
    let word = format!("{}x", uri.replace('/', "zq"));
    let text = format!("Held back under the mark {word}.");
    let content = Content { word, sha256: hex::encode(Sha256::digest(&text)), rev: None };
    let mut command = Command::from(PostgresBinaries::find()?.psql(url));
    let mut psql = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("run psql")?;
    let mut stdin = psql.stdin.take().context("standard input is piped")?;
    let mut lines = BufReader::new(psql.stdout.take().context("standard output is piped")?).lines();

    say(&mut stdin, &format!("BEGIN;\n{}\n\\echo {OPEN}\n", insert(uri, &text))).await;
    // The server may be down, or go down at any time: then nothing more comes.
    let is_open = matches!(lines.next_line().await, Ok(Some(line)) if line == OPEN);
    if !is_open {
        return Ok("aborted");
    }
    held.await;
    if !commits {
        say(&mut stdin, "ROLLBACK;\n").await;
        drop(stdin);
        psql.wait().await?;
        return Ok("aborted");
    }
    let present = State::Present { content, version: None };
    oracle.begin(uri, present.clone());
    say(&mut stdin, &format!("COMMIT;\n\\echo {COMMITTED}\n")).await;
    drop(stdin);
    let is_committed = matches!(lines.next_line().await, Ok(Some(line)) if line == COMMITTED);
    psql.wait().await?;
    if is_committed {
        oracle.settle(uri, present);
        return Ok("committed");
    }
    Ok("unclear")
}

async fn say(stdin: &mut ChildStdin, sql: &str) {
    // One that has ended shows in what it prints.
    let _ = stdin.write_all(sql.as_bytes()).await;
    let _ = stdin.flush().await;
}

/// The uri and the text are ours: letters, digits and a slash.
fn insert(uri: &str, text: &str) -> String {
    let bytes = text.len();
    format!(
        "INSERT INTO source (id, project_id, uri, title, media_type, content_hash, text, state, chunk_count, chunker)
           SELECT gen_random_uuid(), id, '{uri}', 'held back', 'text', sha256('{text}'), '{text}', 'chunked', 1, 'torture'
           FROM project WHERE name = '{PROJECT}';
         INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
           SELECT gen_random_uuid(), project_id, id, 0, '{text}', sha256('{text}'), 0, {bytes}, 8
           FROM source WHERE uri = '{uri}';"
    )
}
