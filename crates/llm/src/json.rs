use std::fmt;

use serde::{
    Deserializer as _,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// How many places of an answer are tried. Bounds the work on an answer made of braces.
const MAX_TRIES: usize = 32;

/// The list of facts in an answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Found {
    /// Its elements, those that stand whole.
    pub(crate) facts: Vec<Value>,
    pub(crate) end: End,
}

/// How a list of facts ends.
#[derive(Debug, PartialEq)]
pub(crate) enum End {
    /// As it should: nothing of it is missing.
    Whole,
    /// With the answer. At least one element stands before the place.
    Cut,
    /// With what is no JSON; says what is wrong. At least one element stands before the place.
    Broken(String),
}

/// Finds the list of facts in what a model wrote.
///
/// Models put JSON into code fences, say something before or after it, or think aloud
/// first; none of that matters. Where the JSON is not whole, the list is what stands whole
/// before the first element that does not.
///
/// # Errors
/// What is wrong with an answer without such a list; never a piece of it.
pub(crate) fn find_facts(answer: &str) -> Result<Found, String> {
    // A draft inside the thoughts is not the answer. The mark may also stand in a quote,
    // in which case what follows it is no object.
    if let Some((_, rest)) = answer.rsplit_once("</think>")
        && let Ok(found) = find_in(rest)
    {
        return Ok(found);
    }
    find_in(answer)
}

fn find_in(answer: &str) -> Result<Found, String> {
    match first_object(answer) {
        Ok(mut object) => match object.remove("facts") {
            Some(Value::Array(facts)) => Ok(Found { facts, end: End::Whole }),
            _ => Err("facts is no list".to_owned()),
        },
        Err(problem) => beginning(answer).ok_or(problem),
    }
}

fn first_object(answer: &str) -> Result<Map<String, Value>, String> {
    let mut first_problem = None;
    for rest in openings(answer) {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next() {
            Some(Ok(Value::Object(object))) if object.contains_key("facts") => return Ok(object),
            Some(Ok(_)) => {
                first_problem.get_or_insert_with(|| "the object has no key facts".to_owned());
            }
            Some(Err(error)) => {
                first_problem.get_or_insert_with(|| describe(&error));
            }
            None => break,
        }
    }
    Err(first_problem.unwrap_or_else(|| "no JSON object".to_owned()))
}

/// Returns the answer from each of its first braces on. Some models wrap the object into
/// another one, so a brace inside an object counts too.
fn openings(answer: &str) -> impl Iterator<Item = &str> {
    answer.match_indices('{').take(MAX_TRIES).filter_map(|(at, _)| answer.get(at..))
}

/// Describes an error without its own text, which may quote the answer: the place will do.
fn describe(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let what = if error.is_eof() { "ends in the middle" } else { "is no valid JSON" };
    format!("the object {what}, at its line {line} column {column}")
}

/// Reads a list of facts whose object is not whole; `None` if nothing of it can be used.
fn beginning(answer: &str) -> Option<Found> {
    openings(answer).find_map(|rest| {
        let mut list = List::default();
        // With serde_json, so the work is linear and nesting has its limit.
        let error = serde_json::Deserializer::from_str(rest).deserialize_map(&mut list).err()?;
        let end = if list.is_closed {
            // What went wrong came after the list.
            End::Whole
        } else if error.is_eof() {
            End::Cut
        } else {
            End::Broken(describe(&error))
        };
        (list.is_closed || !list.facts.is_empty()).then_some(Found { facts: list.facts, end })
    })
}

/// The list of facts as far as it was read: it outlives the error that ends the reading.
#[derive(Default)]
struct List {
    facts: Vec<Value>,
    is_closed: bool,
}

/// Reads the object around the list.
impl<'de> Visitor<'de> for &mut List {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with facts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "facts" {
                // Of two equal keys the last counts, as anywhere in JSON.
                *self = List::default();
                map.next_value_seed(Elements(self))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Reads the list itself.
struct Elements<'a>(&'a mut List);

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of facts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element()? {
            self.0.facts.push(element);
        }
        self.0.is_closed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_found_wherever_it_stands() {
        for answer in [
            r#"{"facts": []}"#,
            "```json\n{\"facts\": []}\n```",
            r#"Sure! Here {is} the JSON you wanted: {"facts": []} I hope that helps {."#,
            r#"{"note": "first"} {"facts": []}"#,
            r#"{"answer": {"facts": []}}"#,
            r#"{"facts": [], "note": "</think> {"}"#,
            r#"<think>perhaps {"facts": [1]}</think> {"facts": []}"#,
            "\u{feff}{\"facts\": []}",
            // What is missing is not of the list.
            r#"{"facts": []"#,
            r#"{"answer": {"facts": [], "note": "and so"#,
            "```json\n{\"facts\": []\n```",
        ] {
            assert_eq!(find_facts(answer), Ok(Found { facts: Vec::new(), end: End::Whole }), "{answer}");
        }
    }

    #[test]
    fn an_answer_without_the_list_says_what_is_wrong() {
        for (answer, problem) in [
            ("", "no JSON object"),
            ("I can't do that.", "no JSON object"),
            (r#"{"fact": []}"#, "no key facts"),
            (r#"{"facts": null}"#, "facts is no list"),
            (r#"{"facts": [{"statement": "x"#, "ends in the middle"),
            (r#"{"facts": ["#, "ends in the middle"),
            (r#"{"facts": [NaN]}"#, "no valid JSON"),
        ] {
            let message = find_facts(answer).unwrap_err();
            assert!(message.contains(problem), "{answer}: {message}");
        }
    }

    #[test]
    fn wherever_an_answer_is_cut_the_whole_elements_stay() {
        let facts =
            [json!({"a": "\u{1F600}\\\"{[", "b": [1, {"c": null}]}), json!({"d": {"e": []}}), json!({"f": "</"})];
        for (before, after) in [("", "}"), ("<think>{\"facts\": [7]}</think>```json\n{\"answer\": ", "}}\n```")] {
            let list = facts.iter().map(Value::to_string).collect::<Vec<_>>().join(" , ");
            let answer = format!("{before}{{\"note\": {{}}, \"facts\": [{list}]{after}");
            let begin = answer.find("note").unwrap();
            let ends: Vec<usize> = facts
                .iter()
                .map(|fact| answer.find(&fact.to_string()).map(|at| at + fact.to_string().len()).unwrap())
                .collect();
            for at in (begin..answer.len()).filter(|&at| answer.is_char_boundary(at)) {
                let whole = ends.iter().filter(|&&end| end <= at).count();
                let closed = at > answer.rfind(']').unwrap();
                match find_facts(&answer[..at]) {
                    Ok(found) if closed => assert_eq!(found.end, End::Whole, "{at}"),
                    // The draft, while there is nothing better.
                    Ok(found) if whole == 0 => assert_eq!((found.facts, before.is_empty()), (vec![json!(7)], false)),
                    Ok(found) => assert_eq!((found.facts.as_slice(), found.end), (&facts[..whole], End::Cut), "{at}"),
                    Err(problem) => assert_eq!((whole, before.is_empty()), (0, true), "{at}: {problem}"),
                }
            }
        }
    }

    #[test]
    fn what_stands_before_broken_json_is_kept_and_said_to_be_broken() {
        for tail in ["oops", "{\"b\": NaN}]}", "{\"b\": \"\\ud800\"}]}", "{'b': 1}]}", "]]}", &"[".repeat(1_000)] {
            let found = find_facts(&format!("{{\"facts\": [{{\"a\": 1}}, {tail}")).unwrap();
            assert_eq!(found.facts, [json!({"a": 1})], "{tail}");
            assert!(matches!(&found.end, End::Broken(problem) if problem.contains("no valid JSON")), "{tail}");
        }
        // Of two lists the last counts.
        let found = find_facts(r#"{"facts": [1, 2], "facts": [3, "#).unwrap();
        assert_eq!((found.facts, found.end), (vec![json!(3)], End::Cut));
    }

    #[test]
    fn megabytes_of_braces_are_survived() {
        const MANY: usize = 4 << 20;
        assert!(find_facts(&"{".repeat(MANY)).is_err());
        assert!(find_facts(&r#"{"facts":"#.repeat(MANY / 9)).is_err());
        assert!(find_facts(&r#"{"facts":["#.repeat(MANY / 10)).is_err());
        assert!(find_facts(&format!(r#"{{"facts":{}"#, "[".repeat(MANY))).is_err());
        assert!(find_facts(&format!(r#"{{"note":{}"#, "[".repeat(MANY))).is_err());
        assert!(find_facts(&format!(r#"{{"facts":["{}"#, "\\".repeat(MANY))).is_err());
        let found = find_facts(&format!(r#"{{"facts":[{}"#, "{},".repeat(MANY / 3))).unwrap();
        assert_eq!((found.facts.len(), found.end), (MANY / 3, End::Cut));
    }
}
