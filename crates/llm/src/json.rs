use serde_json::{Map, Value};

/// How many places of an answer are tried. Bounds the work on an answer made of braces.
const MAX_TRIES: usize = 32;

/// Finds the object with the facts in what a model wrote.
///
/// Models put JSON into code fences, say something before or after it, or think aloud
/// first; none of that matters.
pub(crate) fn find_object(answer: &str) -> Result<Map<String, Value>, String> {
    // A draft inside the thoughts is not the answer. The mark may also stand in a quote,
    // in which case what follows it is no object.
    if let Some((_, rest)) = answer.rsplit_once("</think>")
        && let Ok(object) = first_object(rest)
    {
        return Ok(object);
    }
    first_object(answer)
}

fn first_object(answer: &str) -> Result<Map<String, Value>, String> {
    let mut from = 0;
    let mut first_problem = None;
    for _ in 0..MAX_TRIES {
        let Some(start) = answer.get(from..).and_then(|rest| rest.find('{')).map(|at| from + at) else { break };
        let mut values = serde_json::Deserializer::from_str(&answer[start..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(Value::Object(object))) if object.contains_key("facts") => return Ok(object),
            Some(Ok(_)) => {
                first_problem.get_or_insert_with(|| "the object has no key facts".to_owned());
            }
            Some(Err(error)) => {
                // Its text may quote the answer: the place will do.
                let (line, column) = (error.line(), error.column());
                let what = if error.is_eof() { "ends in the middle" } else { "is no valid JSON" };
                first_problem.get_or_insert_with(|| format!("the object {what}, at its line {line} column {column}"));
            }
            None => break,
        }
        // Some models wrap the object into another one.
        from = start + 1;
    }
    Err(first_problem.unwrap_or_else(|| "no JSON object".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_wherever_it_stands() {
        for answer in [
            r#"{"facts": []}"#,
            "```json\n{\"facts\": []}\n```",
            r#"Sure! Here {is} the JSON you wanted: {"facts": []} I hope that helps {."#,
            r#"{"note": "first"} {"facts": []}"#,
            r#"{"answer": {"facts": []}}"#,
            r#"{"facts": [], "note": "</think> {"}"#,
            r#"<think>perhaps {"facts": [1]}</think> {"facts": []}"#,
            "\u{feff}{\"facts\": []}",
        ] {
            let object = find_object(answer).unwrap();
            assert_eq!(object["facts"], Value::Array(Vec::new()), "{answer}");
        }
    }

    #[test]
    fn an_answer_without_the_object_says_what_is_wrong() {
        for (answer, problem) in [
            ("", "no JSON object"),
            ("I can't do that.", "no JSON object"),
            (r#"{"fact": []}"#, "no key facts"),
            (r#"{"facts": [{"statement": "x"#, "ends in the middle"),
            (r#"{"facts": [NaN]}"#, "no valid JSON"),
        ] {
            let message = find_object(answer).unwrap_err();
            assert!(message.contains(problem), "{answer}: {message}");
        }
    }

    #[test]
    fn braces_without_end_are_survived() {
        assert!(find_object(&"{".repeat(1 << 20)).is_err());
        assert!(find_object(&r#"{"facts":"#.repeat(100_000)).is_err());
        assert!(find_object(&format!(r#"{{"facts":{}"#, "[".repeat(1 << 20))).is_err());
    }
}
