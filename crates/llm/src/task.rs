use serde::{Deserialize, Serialize};

/// The longest instructions.
const MAX_INSTRUCTIONS_BYTES: usize = 8 << 10;

/// The most fact types, and the most entity types.
const MAX_TYPES: usize = 64;

/// The longest name of a type or of a model's priority.
pub(crate) const MAX_TYPE_BYTES: usize = 64;

/// The longest name of a model.
const MAX_MODEL_BYTES: usize = 256;

/// What a provider is given to read.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtractionTask {
    /// The chunk.
    pub text: String,
    /// The headings above the chunk, outermost first.
    pub headings: Vec<String>,
    /// The document's title; empty if it has none.
    pub title: String,
    /// What is wanted.
    pub settings: ExtractionSettings,
}

/// What is wanted of an extraction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExtractionSettings {
    /// Whether anything is extracted at all.
    pub enabled: bool,
    /// What to look for, in the owner's words; added to the prompt.
    pub instructions: String,
    /// The types of fact that are kept; all if empty.
    pub fact_types: Vec<String>,
    /// The types of entity that are kept; all if empty.
    pub entity_types: Vec<String>,
    /// The model, if not the provider's own.
    pub model: Option<String>,
    /// Which tasks go first: a name of the queue's.
    pub priority: String,
}

impl Default for ExtractionSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            instructions: String::new(),
            fact_types: Vec::new(),
            entity_types: Vec::new(),
            model: None,
            priority: "normal".to_owned(),
        }
    }
}

impl ExtractionSettings {
    /// Checks the values.
    ///
    /// # Errors
    /// A text that names the key, what is wrong with its value, and the fix.
    pub fn validate(&self) -> Result<(), String> {
        let length = self.instructions.len();
        if length > MAX_INSTRUCTIONS_BYTES {
            return Err(format!("instructions: {length} bytes, more than {MAX_INSTRUCTIONS_BYTES}; shorten them"));
        }
        // Postgres takes no NUL in a text.
        if self.instructions.contains('\0') {
            return Err("instructions: hold a NUL character; remove it".to_owned());
        }
        check_types("fact_types", &self.fact_types)?;
        check_types("entity_types", &self.entity_types)?;
        if let Some(model) = &self.model {
            let unusable = model.trim().is_empty() || model.len() > MAX_MODEL_BYTES;
            if unusable || model.chars().any(char::is_control) {
                let shown = shown(model);
                return Err(format!(
                    "model: {shown} is no name of 1 to {MAX_MODEL_BYTES} bytes; \
                     name a model of the server's or leave it out"
                ));
            }
        }
        if !is_type(&self.priority) {
            let shown = shown(&self.priority);
            return Err(format!("priority: {shown} is no priority; write normal or another name of a-z, 0-9 and _"));
        }
        Ok(())
    }
}

fn check_types(key: &str, types: &[String]) -> Result<(), String> {
    let count = types.len();
    if count > MAX_TYPES {
        return Err(format!("{key}: {count} types, more than {MAX_TYPES}; remove some"));
    }
    match types.iter().find(|name| !is_type(name)) {
        Some(name) => {
            let shown = shown(name);
            Err(format!("{key}: {shown} is no type; write 1 to {MAX_TYPE_BYTES} of a-z, 0-9 and _"))
        }
        None => Ok(()),
    }
}

/// Says whether a name can be a type of facts or entities.
pub(crate) fn is_type(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !name.is_empty() && name.len() <= MAX_TYPE_BYTES && name.bytes().all(plain)
}

/// Writes a value into a message: escaped, and no longer than a line.
fn shown(value: &str) -> String {
    format!("{:?}", value.chars().take(MAX_TYPE_BYTES).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_extract_nothing() {
        let settings = ExtractionSettings::default();
        assert_eq!(settings.validate(), Ok(()));
        assert!(!settings.enabled);
        assert_eq!(settings.priority, "normal");
        assert_eq!(serde_json::from_str::<ExtractionSettings>("{}").unwrap(), settings);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(serde_json::from_str::<ExtractionSettings>(r#"{"fact_type": []}"#).is_err());
    }

    #[test]
    fn a_bad_value_is_named_with_its_key() {
        let base = ExtractionSettings::default;
        let cases = [
            (ExtractionSettings { instructions: "x".repeat(8_193), ..base() }, "instructions: 8193"),
            (ExtractionSettings { instructions: "a\0b".to_owned(), ..base() }, "instructions: hold a NUL"),
            (ExtractionSettings { fact_types: vec!["Fact".to_owned()], ..base() }, "fact_types: \"Fact\""),
            (ExtractionSettings { fact_types: vec!["f".to_owned(); 65], ..base() }, "fact_types: 65"),
            (ExtractionSettings { entity_types: vec!["x".repeat(65)], ..base() }, "entity_types: \"xxx"),
            (ExtractionSettings { entity_types: vec![String::new()], ..base() }, "entity_types: \"\""),
            (ExtractionSettings { model: Some(" ".to_owned()), ..base() }, "model: \" \""),
            (ExtractionSettings { priority: String::new(), ..base() }, "priority: \"\""),
        ];
        for (settings, start) in cases {
            let message = settings.validate().unwrap_err();
            assert!(message.starts_with(start), "{message}");
        }
    }
}
