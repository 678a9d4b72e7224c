//! Just enough of Redis' protocol to send commands and to see that they were taken.
//!
//! Not by a client library: `waybill-llm-queue` alone knows that one, and its time would be in
//! the ceiling. Commands are put together before the clock runs and answers are skipped
//! rather than kept, so what is measured is what the wire and the server give.

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// The answers to some hundred commands.
const BUFFER: usize = 64 * 1024;

/// Commands that are written at once.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    bytes: Vec<u8>,
    commands: usize,
}

impl Pipeline {
    /// Adds a command.
    pub(super) fn push(&mut self, words: &[&str]) {
        self.bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        self.commands += 1;
    }
}

/// A connection to a Redis server.
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
    line: String,
}

impl Connection {
    /// Connects to the server at `redis://[:PASSWORD@]HOST:PORT/0`.
    pub(super) async fn open(url: &str) -> anyhow::Result<Self> {
        let place = url.strip_prefix("redis://").context("the url of Redis does not begin with redis://")?;
        let (user, address) = place.rsplit_once('@').unwrap_or(("", place));
        let address = address.split('/').next().unwrap_or(address);
        let stream = TcpStream::connect(address).await.context("connect to Redis")?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream: BufReader::with_capacity(BUFFER, stream), line: String::new() };
        if let Some((_, password)) = user.split_once(':') {
            let mut pipeline = Pipeline::default();
            pipeline.push(&["AUTH", password]);
            connection.call(&pipeline).await?;
        }
        Ok(connection)
    }

    /// Writes all commands, then reads an answer to each.
    ///
    /// # Errors
    /// If the server refuses one, or goes away.
    pub(super) async fn call(&mut self, pipeline: &Pipeline) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(&pipeline.bytes).await?;
        for _ in 0..pipeline.commands {
            self.read_line().await?;
            match self.line.as_bytes().first() {
                Some(b'+') => {}
                // A string follows its length: the id of an entry, which has no line break in it.
                Some(b'$') if !self.line.starts_with("$-1") => self.read_line().await?,
                _ => bail!("redis answered {:?}", self.line.trim_end()),
            }
        }
        Ok(())
    }

    async fn read_line(&mut self) -> anyhow::Result<()> {
        self.line.clear();
        if self.stream.read_line(&mut self.line).await? == 0 {
            bail!("redis has closed the connection");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_carry_their_length_in_bytes() {
        let mut pipeline = Pipeline::default();
        pipeline.push(&["XADD", "é"]);
        pipeline.push(&["PING"]);
        let expected = "*2\r\n$4\r\nXADD\r\n$2\r\né\r\n*1\r\n$4\r\nPING\r\n";
        assert_eq!((pipeline.bytes.as_slice(), pipeline.commands), (expected.as_bytes(), 2));
    }
}
