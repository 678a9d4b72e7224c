//! Has a language model read facts and entities out of a chunk of text.
//!
//! A provider sits behind [`LlmProvider`]. [`OpenAi`] asks any server that speaks OpenAI's
//! `/chat/completions`; [`Rules`] is no language model, needs no server and gives the same
//! answer every time. What a model says is never taken on trust: [`read_extraction`] keeps
//! only facts whose quote stands in the chunk, and counts the rest.
//!
//! [`governor`] holds the pure logic that decides how many calls may be under way and when.
//! Nothing here knows about Postgres, queues or gRPC.

mod config;
mod error;
pub mod governor;
mod http;
mod json;
pub mod limits;
mod openai;
mod prompt;
mod provider;
mod read;
mod rules;
mod task;
mod text;

pub use config::OpenAiConfig;
pub use error::{Excerpt, LlmError};
pub use openai::OpenAi;
pub use prompt::{AnswerBounds, PROMPT_VERSION, answer_schema, prompt_messages};
pub use provider::{Answer, Dropped, DroppedEntities, EntityMention, Extraction, Fact, LlmProvider, Usage};
pub use read::read_extraction;
pub use rules::Rules;
pub use task::{ExtractionSettings, ExtractionTask};
pub use text::canonical as canonical_name;
