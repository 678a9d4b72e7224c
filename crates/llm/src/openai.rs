use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Answer, Extraction, ExtractionTask, LlmError, LlmProvider, OpenAiConfig, Usage,
    http::{Failure, Server},
    prompt::{AnswerBounds, add_repair, messages, response_format},
    read::{Reading, read_answer},
};

/// Asks any server that speaks OpenAI's `POST {base_url}/chat/completions`.
pub struct OpenAi {
    server: Server,
    model: String,
    temperature: f32,
    max_tokens: u32,
    bounds: AnswerBounds,
    /// The [`Form`] of requests, as a number; gets weaker when the server refuses it.
    form: AtomicU8,
}

/// How a request holds the model to the form of the answer, weakest first.
///
/// Bounds on lengths and numbers end an answer that goes round in circles, but not every
/// server that takes a schema takes those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Free = 0,
    Schema = 1,
    BoundedSchema = 2,
}

impl Form {
    const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Free,
            1 => Self::Schema,
            _ => Self::BoundedSchema,
        }
    }

    const fn weaker(self) -> Option<Self> {
        match self {
            Self::Free => None,
            Self::Schema => Some(Self::Free),
            Self::BoundedSchema => Some(Self::Schema),
        }
    }
}

/// What the server sends. Only what is used.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
}

/// What a model wrote.
struct Written {
    text: String,
    /// Whether it ran into `max_tokens`.
    cut: bool,
    usage: Usage,
}

impl OpenAi {
    /// Makes the provider. Asks the server nothing.
    ///
    /// # Errors
    /// [`LlmError::Config`], naming the key, what is wrong with it and the fix.
    pub fn new(config: &OpenAiConfig) -> Result<Self, LlmError> {
        config.validate()?;
        Ok(Self {
            server: Server::new(config)?,
            model: config.model.clone(),
            temperature: config.temperature,
            max_tokens: config.max_tokens(),
            bounds: config.bounds(),
            form: AtomicU8::new(if config.json_schema { Form::BoundedSchema } else { Form::Free } as u8),
        })
    }

    /// Sends the messages, with a weaker schema or none if the server turns out to refuse it.
    async fn complete(&self, model: &str, messages: &[Value], task: &ExtractionTask) -> Result<Written, LlmError> {
        let mut form = Form::from_number(self.form.load(Ordering::Relaxed));
        loop {
            match self.server.post(&self.body(model, messages, task, form)).await {
                Ok(answer) => {
                    if self.form.fetch_min(form as u8, Ordering::Relaxed) > form as u8 {
                        tracing::info!(model, ?form, "llm server refuses the JSON schema; going on with less");
                    }
                    return self.read(&answer);
                }
                Err(Failure { over_format: true, error }) => match form.weaker() {
                    Some(weaker) => form = weaker,
                    None => return Err(error),
                },
                Err(failure) => return Err(failure.error),
            }
        }
    }

    fn body(&self, model: &str, messages: &[Value], task: &ExtractionTask, form: Form) -> Value {
        let mut body = json!({
            "model": model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stream": false,
        });
        match form {
            Form::BoundedSchema => body["response_format"] = response_format(&task.settings, Some(self.bounds)),
            Form::Schema => body["response_format"] = response_format(&task.settings, None),
            Form::Free => {}
        }
        body
    }

    fn read(&self, body: &[u8]) -> Result<Written, LlmError> {
        let completion: Completion = serde_json::from_slice(body).map_err(|error| {
            if error.is_eof() {
                return LlmError::Unavailable("the answer ends in the middle".to_owned());
            }
            // Its text may quote the body: the place will do.
            let (line, column) = (error.line(), error.column());
            let problem = format!("not a completion, at line {line} column {column}");
            self.server.bad_answer(problem, &String::from_utf8_lossy(body))
        })?;
        let usage = completion.usage.map_or_else(Usage::default, |tokens| Usage {
            prompt_tokens: tokens.prompt_tokens.unwrap_or_default(),
            completion_tokens: tokens.completion_tokens.unwrap_or_default(),
        });
        let Some(choice) = completion.choices.into_iter().next() else {
            return Err(self.server.bad_answer("no choices", "").after(usage));
        };
        let cut = choice.finish_reason.as_deref() == Some("length");
        Ok(Written { text: choice.message.content.unwrap_or_default(), cut, usage })
    }
}

#[async_trait]
impl LlmProvider for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn model(&self) -> &str {
        &self.model
    }

    async fn extract(&self, task: &ExtractionTask) -> Result<Answer, LlmError> {
        let model = task.settings.model.as_deref().unwrap_or(&self.model);
        let answer = |extraction, usage, repaired| {
            let extraction = bounded(extraction, self.bounds);
            Answer { extraction, usage, model: model.to_owned(), repaired }
        };
        let mut messages = messages(task, self.bounds);
        let first = self.complete(model, &messages, task).await?;
        let (problem, rest) = match read_written(&first, task) {
            Reading::Read(extraction) => return Ok(answer(extraction, first.usage, false)),
            Reading::Broken { .. } if first.cut => {
                ("it became too long; give the most important facts alone".to_owned(), None)
            }
            Reading::Broken { problem, rest } => (problem, rest.filter(|rest| !rest.facts.is_empty())),
        };
        tracing::debug!(model, problem, "llm answer cannot be read; asking once more");
        add_repair(&mut messages, &first.text, &problem);
        let second = match self.complete(model, &messages, task).await {
            // The task itself was accepted, so it is the longer conversation that was not.
            Err(LlmError::Refused { status, .. }) => {
                let problem = format!("{problem}; the repair was refused with status {status}");
                let refused = self.server.bad_answer(problem, &first.text).after(first.usage);
                return rest.map(|rest| answer(rest, first.usage, false)).ok_or(refused);
            }
            second => second.map_err(|error| error.after(first.usage))?,
        };
        let usage = first.usage.plus(second.usage);
        match read_written(&second, task) {
            Reading::Read(extraction) => Ok(answer(extraction, usage, true)),
            // Facts of a broken answer are worth more than none.
            Reading::Broken { problem, rest: others } => [rest, others]
                .into_iter()
                .flatten()
                .max_by_key(|rest| rest.facts.len())
                .filter(|rest| !rest.facts.is_empty())
                .map(|rest| answer(rest, usage, true))
                .ok_or_else(|| self.server.bad_answer(problem, &second.text).after(usage)),
        }
    }
}

fn read_written(written: &Written, task: &ExtractionTask) -> Reading {
    match read_answer(&written.text, &task.text, &task.settings) {
        // It broke, went on and ran out of tokens: it would again.
        Reading::Broken { rest: Some(rest), .. } if written.cut => Reading::Read(rest),
        reading => reading,
    }
}

/// Drops what a model wrote beyond what it was asked for.
fn bounded(mut extraction: Extraction, bounds: AnswerBounds) -> Extraction {
    let count = |over: usize| u32::try_from(over).unwrap_or(u32::MAX);
    let dropped = &mut extraction.dropped;
    dropped.too_many = dropped.too_many.saturating_add(count(extraction.facts.len().saturating_sub(bounds.facts)));
    extraction.facts.truncate(bounds.facts);
    let entities = &mut dropped.entities;
    for fact in &mut extraction.facts {
        let over = fact.entities.len().saturating_sub(bounds.entities_per_fact);
        entities.too_many = entities.too_many.saturating_add(count(over));
        fact.entities.truncate(bounds.entities_per_fact);
    }
    extraction
}
