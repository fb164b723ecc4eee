//! The filter `tojson`, as transformers replaces it: Python's `json.dumps` without escaping.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting that is written; schemas of tools have some ten levels.
const DEPTH_MAX: usize = 100;

/// Bytes that one unit of fuel pays for: as in minijinja's own filter, a sixteenth of what it pays
/// for where bytes are only copied.
const BYTES_PER_FUEL: usize = 4;

/// Writes a value as JSON. The arguments are those of `json.dumps`: `indent`, `ensure_ascii`,
/// `sort_keys`, `separators`.
pub(super) fn filter(state: &State<'_, '_>, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = indent(kwargs.get("indent")?)?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators are two texts")),
        // Python leaves the space at the end of a line out.
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        state,
        indent,
        item,
        key,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        text: String::new(),
        paid_bytes: 0,
        depth: 0,
    };
    kwargs.assert_all_used()?;
    writer.value(value)?;
    Ok(Value::from(writer.text))
}

/// What one level is indented by: so many spaces, or a text.
fn indent(value: Option<Value>) -> Result<Option<String>, Error> {
    /// More than anyone could read.
    const SPACES_MAX: usize = 64;
    let Some(value) = value.filter(|value| !value.is_none()) else {
        return Ok(None);
    };
    match value.as_str() {
        Some(text) => Ok(Some(text.to_owned())),
        None => match usize::try_from(value) {
            Ok(spaces) if spaces <= SPACES_MAX => Ok(Some(" ".repeat(spaces))),
            Ok(_) | Err(_) => Err(invalid("indent is a small number of spaces, or a text")),
        },
    }
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
    text: String,
    paid_bytes: usize,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.sequence(value)?,
            ValueKind::Map => self.map(value)?,
            // As in Python; minijinja may add kinds.
            kind @ (ValueKind::Undefined
            | ValueKind::Bytes
            | ValueKind::Plain
            | ValueKind::Invalid
            | _) => return Err(invalid(format!("a value of kind {kind} cannot be JSON"))),
        }
        self.pay()
    }

    /// Charges for what was written: a small value that holds another many times over becomes a
    /// long text.
    fn pay(&mut self) -> Result<(), Error> {
        let units = (self.text.len() - self.paid_bytes) / BYTES_PER_FUEL;
        self.paid_bytes += units * BYTES_PER_FUEL;
        self.state.consume_fuel(units as u64)
    }

    fn sequence(&mut self, value: &Value) -> Result<(), Error> {
        self.open('[')?;
        let mut empty = true;
        for item in value.try_iter()? {
            self.next_item(empty);
            empty = false;
            self.value(&item)?;
        }
        self.close(']', empty);
        Ok(())
    }

    fn map(&mut self, value: &Value) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.open('{')?;
        let empty = keys.is_empty();
        for (index, key) in keys.iter().enumerate() {
            self.next_item(index == 0);
            self.map_key(key)?;
            let separator = std::mem::take(&mut self.key);
            self.text.push_str(&separator);
            self.key = separator;
            self.value(&value.get_item(key)?)?;
        }
        self.close('}', empty);
        Ok(())
    }

    /// Keys become texts, as in Python.
    fn map_key(&mut self, key: &Value) -> Result<(), Error> {
        if let Some(text) = key.as_str() {
            self.string(text);
            return Ok(());
        }
        self.text.push('"');
        self.value(key)?;
        self.text.push('"');
        Ok(())
    }

    fn open(&mut self, bracket: char) -> Result<(), Error> {
        if self.depth == DEPTH_MAX {
            return Err(invalid("a value is nested too deeply for JSON"));
        }
        self.depth += 1;
        self.text.push(bracket);
        Ok(())
    }

    fn next_item(&mut self, first: bool) {
        if !first {
            self.text.push_str(&self.item);
        }
        self.new_line();
    }

    fn close(&mut self, bracket: char, empty: bool) {
        self.depth -= 1;
        if !empty {
            self.new_line();
        }
        self.text.push(bracket);
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            for _ in 0..self.depth {
                self.text.push_str(indent);
            }
        }
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.text.push_str(&value.to_string());
            return Ok(());
        }
        let number = f64::try_from(value.clone())?;
        self.text.push_str(&match number {
            _ if number.is_nan() => "NaN".to_owned(),
            f64::INFINITY => "Infinity".to_owned(),
            f64::NEG_INFINITY => "-Infinity".to_owned(),
            _ => python_float(number),
        });
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                '\0'..'\u{20}' => self.escape(character),
                _ if self.ensure_ascii && character > '~' => self.escape(character),
                _ => self.text.push(character),
            }
        }
        self.text.push('"');
    }

    fn escape(&mut self, character: char) {
        let mut units = [0; 2];
        for unit in character.encode_utf16(&mut units) {
            self.text.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// As Python writes a float: like Rust, but an exponent has a sign and two digits.
fn python_float(number: f64) -> String {
    let text = format!("{number:?}");
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}
