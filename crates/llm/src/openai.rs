use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Answer, ExtractionTask, LlmError, LlmProvider, OpenAiConfig, Usage,
    http::{Failure, Server},
    prompt::{add_repair, messages, response_format},
    read::read_extraction,
};

/// Asks any server that speaks OpenAI's `POST {base_url}/chat/completions`.
pub struct OpenAi {
    server: Server,
    model: String,
    temperature: f32,
    max_tokens: u32,
    /// Whether requests carry a schema. Ends with the first refusal.
    json_schema: AtomicBool,
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
            max_tokens: config.max_tokens,
            json_schema: AtomicBool::new(config.json_schema),
        })
    }

    /// Sends the messages, without a schema if the server turns out to refuse one.
    async fn complete(&self, model: &str, messages: &[Value], task: &ExtractionTask) -> Result<Written, LlmError> {
        let mut body = json!({
            "model": model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stream": false,
        });
        let with_schema = self.json_schema.load(Ordering::Relaxed);
        if with_schema {
            body["response_format"] = response_format(&task.settings);
        }
        let answer = match self.server.post(&body).await {
            Err(Failure { over_format: true, .. }) if with_schema => {
                if self.json_schema.swap(false, Ordering::Relaxed) {
                    tracing::info!(model, "llm server refuses a JSON schema; going on without");
                }
                if let Some(body) = body.as_object_mut() {
                    body.remove("response_format");
                }
                self.server.post(&body).await
            }
            answer => answer,
        };
        self.read(&answer.map_err(|failure| failure.error)?)
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
        let mut messages = messages(task);
        let first = self.complete(model, &messages, task).await?;
        let answer = |extraction, usage, repaired| Answer { extraction, usage, model: model.to_owned(), repaired };
        let problem = match read_extraction(&first.text, &task.text, &task.settings) {
            Ok(extraction) => return Ok(answer(extraction, first.usage, false)),
            Err(_) if first.cut => "it became too long; give the most important facts alone".to_owned(),
            Err(problem) => problem,
        };
        tracing::debug!(model, problem, "llm answer cannot be read; asking once more");
        add_repair(&mut messages, &first.text, &problem);
        let second = match self.complete(model, &messages, task).await {
            // The task itself was accepted, so it is the longer conversation that was not.
            Err(LlmError::Refused { status, .. }) => {
                let problem = format!("{problem}; the repair was refused with status {status}");
                return Err(self.server.bad_answer(problem, &first.text).after(first.usage));
            }
            second => second.map_err(|error| error.after(first.usage))?,
        };
        match read_extraction(&second.text, &task.text, &task.settings) {
            Ok(extraction) => Ok(answer(extraction, first.usage.plus(second.usage), true)),
            Err(problem) => Err(self.server.bad_answer(problem, &second.text).after(first.usage.plus(second.usage))),
        }
    }
}
