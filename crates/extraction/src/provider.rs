//! Who answers: chosen once, by configuration.

use std::sync::Arc;

use anyhow::Context;
use waybill_llm::{LlmProvider, OpenAi, Rules, Usage};

use crate::config::{Config, ProviderName};

/// A provider, and what its tokens cost.
#[derive(Clone)]
pub(crate) struct Provider {
    pub(crate) llm: Arc<dyn LlmProvider>,
    prices: Option<waybill_llm::OpenAiConfig>,
}

impl Provider {
    /// A provider whose tokens cost what `prices` say.
    #[cfg(test)]
    pub(crate) fn of(llm: impl LlmProvider + 'static, prices: waybill_llm::OpenAiConfig) -> Self {
        Self { llm: Arc::new(llm), prices: Some(prices) }
    }

    pub(crate) fn cost(&self, usage: Usage) -> f64 {
        self.prices.as_ref().map_or(0.0, |prices| prices.cost(usage))
    }
}

pub(crate) fn connect(config: &Config) -> anyhow::Result<Provider> {
    Ok(match config.provider {
        ProviderName::Rules => Provider { llm: Arc::new(Rules::new()), prices: None },
        ProviderName::Openai => {
            let llm = OpenAi::new(&config.openai).context("extraction.openai")?;
            Provider { llm: Arc::new(llm), prices: Some(config.openai.clone()) }
        }
    })
}
