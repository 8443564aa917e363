//! XML-RPC as supervisord speaks it: requests as text, answers as values. Pure; the answer is hostile.

use quick_xml::Reader;
use quick_xml::events::Event;
use std::collections::BTreeMap;

/// How deep values may lie in each other. supervisord's answers are three deep.
const DEPTH_MAX: usize = 16;

/// A value of XML-RPC; numbers with a fraction, dates and bytes are kept as their text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Int(i64),
    Bool(bool),
    Text(String),
    Array(Vec<Value>),
    Struct(BTreeMap<String, Value>),
}

impl Value {
    /// Returns the member `name` of a structure.
    pub(crate) fn member(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Struct(members) => members.get(name),
            _ => None,
        }
    }

    /// Returns the text of the member `name`, or nothing.
    pub(crate) fn text(&self, name: &str) -> &str {
        match self.member(name) {
            Some(Self::Text(text)) => text,
            _ => "",
        }
    }

    /// Returns the number of the member `name`, or 0.
    pub(crate) fn int(&self, name: &str) -> i64 {
        match self.member(name) {
            Some(Self::Int(number)) => *number,
            Some(Self::Bool(flag)) => i64::from(*flag),
            _ => 0,
        }
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Value(Value),
    Fault { code: i64, words: String },
}

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument<'a> {
    Text(&'a str),
    Bool(bool),
}

/// Writes the call of `method`.
pub(crate) fn request(method: &str, arguments: &[Argument<'_>]) -> String {
    let mut text = format!("<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>");
    for argument in arguments {
        text.push_str("<param><value>");
        match argument {
            Argument::Text(words) => {
                text.push_str("<string>");
                text.push_str(&quick_xml::escape::escape(*words));
                text.push_str("</string>");
            }
            Argument::Bool(flag) => text.push_str(if *flag { "<boolean>1</boolean>" } else { "<boolean>0</boolean>" }),
        }
        text.push_str("</value></param>");
    }
    text.push_str("</params></methodCall>");
    text
}

/// A value that is not whole yet.
enum Open {
    /// `<value>`: its text so far, its type, and what it holds once that is known.
    Value {
        text: String,
        tag: Vec<u8>,
        done: Option<Value>,
    },
    Array(Vec<Value>),
    Struct {
        members: BTreeMap<String, Value>,
        name: String,
    },
}

/// Reads the answer of a call.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn answer(bytes: &[u8]) -> Result<Answer, String> {
    let mut reader = Reader::from_reader(bytes);
    let mut stack: Vec<Open> = Vec::new();
    let mut result = None;
    let mut fault = false;
    let mut naming = false;
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Eof => break,
            Event::Start(tag) => match tag.name().as_ref() {
                b"fault" => fault = true,
                b"name" => naming = true,
                name => open(&mut stack, name)?,
            },
            Event::Empty(tag) => {
                open(&mut stack, tag.name().as_ref())?;
                close(&mut stack, tag.name().as_ref(), &mut result)?;
            }
            Event::End(tag) => match tag.name().as_ref() {
                b"name" => naming = false,
                name => close(&mut stack, name, &mut result)?,
            },
            Event::Text(text) => {
                let text = text.decode().map_err(|error| error.to_string())?;
                take_text(&mut stack, &text, naming);
            }
            Event::CData(text) => {
                let text = text.decode().map_err(|error| error.to_string())?;
                take_text(&mut stack, &text, naming);
            }
            Event::GeneralRef(reference) => {
                let number = reference.resolve_char_ref().map_err(|error| error.to_string())?;
                let name = reference.decode().map_err(|error| error.to_string())?;
                let text = match number {
                    Some(letter) => letter.to_string(),
                    None => quick_xml::escape::resolve_predefined_entity(&name)
                        .ok_or_else(|| format!("an entity that nobody declared: &{name};"))?
                        .to_owned(),
                };
                take_text(&mut stack, &text, naming);
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
    let value = result.ok_or("the answer holds no value")?;
    if fault {
        return Ok(Answer::Fault { code: value.int("faultCode"), words: value.text("faultString").to_owned() });
    }
    Ok(Answer::Value(value))
}

fn open(stack: &mut Vec<Open>, tag: &[u8]) -> Result<(), String> {
    let next = match tag {
        b"value" => Open::Value { text: String::new(), tag: Vec::new(), done: None },
        b"array" => Open::Array(Vec::new()),
        b"struct" => Open::Struct { members: BTreeMap::new(), name: String::new() },
        b"member" => {
            if let Some(Open::Struct { name, .. }) = stack.last_mut() {
                name.clear();
            }
            return Ok(());
        }
        _ => {
            if let Some(Open::Value { tag: kind, text, .. }) = stack.last_mut() {
                kind.clear();
                kind.extend_from_slice(tag.get(..tag.len().min(32)).unwrap_or_default());
                text.clear();
            }
            return Ok(());
        }
    };
    if stack.len() >= DEPTH_MAX {
        return Err(format!("values lie more than {DEPTH_MAX} deep in each other"));
    }
    stack.push(next);
    Ok(())
}

fn close(stack: &mut Vec<Open>, tag: &[u8], result: &mut Option<Value>) -> Result<(), String> {
    if !matches!(tag, b"value" | b"array" | b"struct") {
        return Ok(());
    }
    let value = match (tag, stack.pop()) {
        (b"value", Some(Open::Value { text, tag, done })) => match done {
            Some(done) => done,
            None => scalar(text, &tag)?,
        },
        (b"array", Some(Open::Array(items))) => Value::Array(items),
        (b"struct", Some(Open::Struct { members, .. })) => Value::Struct(members),
        _ => return Err("its elements do not nest".to_owned()),
    };
    match stack.last_mut() {
        None => *result = Some(value),
        Some(Open::Value { done, .. }) => *done = Some(value),
        Some(Open::Array(items)) => items.push(value),
        Some(Open::Struct { members, name }) => {
            members.insert(std::mem::take(name), value);
        }
    }
    Ok(())
}

fn scalar(text: String, tag: &[u8]) -> Result<Value, String> {
    match tag {
        b"int" | b"i4" | b"i8" => text.trim().parse().map(Value::Int).map_err(|error| format!("{text:?}: {error}")),
        b"boolean" => Ok(Value::Bool(text.trim() == "1")),
        _ => Ok(Value::Text(text)),
    }
}

fn take_text(stack: &mut [Open], more: &str, naming: bool) {
    match stack.last_mut() {
        Some(Open::Value { text, done: None, .. }) => text.push_str(more),
        Some(Open::Struct { name, .. }) if naming => name.push_str(more),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: &str = "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value><array><data>\n\
        <value><struct>\n<member>\n<name>name</name>\n<value><string>a&lt;b&amp;&#99;</string></value>\n</member>\n\
        <member>\n<name>pid</name>\n<value><int>42</int></value>\n</member>\n\
        <member><name>spawnerr</name><value><string></string></value></member>\n\
        <member><name>bare</name><value>plain</value></member></struct></value>\n\
        </data></array></value>\n</param>\n</params>\n</methodResponse>\n";

    #[test]
    fn a_list_of_structures_is_read() {
        let Ok(Answer::Value(Value::Array(items))) = answer(PROCESS.as_bytes()) else { panic!("no array") };
        let item = &items[0];
        assert_eq!((item.text("name"), item.int("pid"), item.text("bare")), ("a<b&c", 42, "plain"));
        assert_eq!(item.member("spawnerr"), Some(&Value::Text(String::new())));
    }

    #[test]
    fn a_fault_is_told_from_a_value() {
        let text = "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>60</int></value>\
            </member><member><name>faultString</name><value><string>ALREADY_STARTED: shop:shop</string></value></member>\
            </struct></value></fault></methodResponse>";
        let expected = Answer::Fault { code: 60, words: "ALREADY_STARTED: shop:shop".to_owned() };
        assert_eq!(answer(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_never_a_panic() {
        let deep = "<value><array>".repeat(100_000);
        for text in
            ["", "<value>", "</value>", "<value></array>", "<array></value>", "&x;", "<value>&x;</value>", &deep]
        {
            assert!(answer(text.as_bytes()).is_err(), "{}", text.get(..40).unwrap_or(text));
        }
        for end in 0..PROCESS.len() {
            drop(answer(&PROCESS.as_bytes()[..end]));
            let mut damaged = PROCESS.as_bytes().to_vec();
            damaged[end] ^= 0x15;
            drop(answer(&damaged));
        }
    }

    #[test]
    fn arguments_are_escaped() {
        let text = request("supervisor.startProcess", &[Argument::Text("a<b"), Argument::Bool(false)]);
        assert!(text.contains("<string>a&lt;b</string>") && text.contains("<boolean>0</boolean>"), "{text}");
    }
}
