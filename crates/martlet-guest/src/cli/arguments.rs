//! A command's arguments: options that begin with `--`, words, and what comes after a lone `--`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// The command was called wrongly, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct Usage(pub String);

/// What a command was given and has not taken yet.
#[derive(Debug)]
pub struct Arguments {
    flags: Vec<String>,
    values: Vec<(String, OsString)>,
    words: Vec<OsString>,
    /// What came after a lone `--`.
    command: Vec<OsString>,
}

impl Arguments {
    /// Reads them. Only these flags and options with a value are known.
    pub fn parse(
        mut args: impl Iterator<Item = OsString>,
        flags: &[&str],
        values: &[&str],
    ) -> Result<Self, Usage> {
        let mut parsed = Self {
            flags: Vec::new(),
            values: Vec::new(),
            words: Vec::new(),
            command: Vec::new(),
        };
        while let Some(arg) = args.next() {
            if arg == "--" {
                parsed.command = args.collect();
                break;
            }
            let text = arg.to_string_lossy().into_owned();
            let Some(option) = text.strip_prefix("--") else {
                if text.len() > 1 && text.starts_with('-') {
                    return Err(Usage(format!("there is no option {text}")));
                }
                parsed.words.push(arg);
                continue;
            };
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (option, None),
            };
            if values.contains(&name) {
                let value = value.or_else(|| args.next());
                let value = value.ok_or_else(|| Usage(format!("--{name} needs a value")))?;
                parsed.values.push((name.into(), value));
            } else if flags.contains(&name) && value.is_none() {
                parsed.flags.push(name.into());
            } else {
                return Err(Usage(format!("there is no option {text} here")));
            }
        }
        Ok(parsed)
    }

    /// Was it given?
    pub fn flag(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag == name)
    }

    /// The value of an option, the last if there are several.
    pub fn value<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Usage> {
        let last = self.values.iter().rev().find(|(option, _)| option == name);
        last.map(|(_, value)| number(&format!("--{name}"), value))
            .transpose()
    }

    /// The next word, which may be any bytes.
    pub fn raw(&mut self) -> Option<OsString> {
        for words in [&mut self.words, &mut self.command] {
            if !words.is_empty() {
                return Some(words.remove(0));
            }
        }
        None
    }

    /// The next word.
    pub fn word(&mut self, what: &str) -> Result<String, Usage> {
        let word = self.raw().ok_or_else(|| Usage(format!("{what} is missing")))?;
        word.into_string()
            .map_err(|_| Usage(format!("{what} is not text")))
    }

    /// The next word, which is a number.
    pub fn number<T: FromStr>(&mut self, what: &str) -> Result<T, Usage> {
        let word = self.raw().ok_or_else(|| Usage(format!("{what} is missing")))?;
        number(what, &word)
    }

    /// There must be no more.
    pub fn end(&mut self) -> Result<(), Usage> {
        match self.raw() {
            None => Ok(()),
            Some(word) => Err(Usage(format!("{} is too much", word.to_string_lossy()))),
        }
    }

    /// What came after `--`, of which there must be some, and no words before it.
    pub fn command(mut self) -> Result<Vec<OsString>, Usage> {
        let command = std::mem::take(&mut self.command);
        self.end()?;
        if command.is_empty() {
            return Err(Usage("-- COMMAND is missing".into()));
        }
        Ok(command)
    }
}

fn number<T: FromStr>(what: &str, value: &OsString) -> Result<T, Usage> {
    let number = std::str::from_utf8(value.as_bytes())
        .ok()
        .and_then(|text| text.parse().ok());
    number.ok_or_else(|| Usage(format!("{what}: {} is no such number", value.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Arguments, Usage> {
        Arguments::parse(
            text.split_whitespace().map(OsString::from),
            &["json"],
            &["timeout"],
        )
    }

    #[test]
    fn options_words_and_a_command() {
        let mut arguments = parse("--timeout 5 8 --json --timeout=7 -- echo --json -x").unwrap();
        assert!(arguments.flag("json"));
        assert_eq!(arguments.value::<u32>("timeout"), Ok(Some(7)));
        assert_eq!(arguments.number::<u32>("N"), Ok(8));
        assert_eq!(arguments.command().unwrap(), ["echo", "--json", "-x"]);
    }

    #[test]
    fn words_after_two_dashes_are_words() {
        let mut arguments = parse("0 -- --data").unwrap();
        assert_eq!(arguments.number::<u8>("STATUS"), Ok(0));
        assert_eq!(arguments.raw().unwrap(), "--data");
        assert_eq!(arguments.end(), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("--wait", "there is no option --wait here"),
            ("--json=1", "there is no option --json=1 here"),
            ("-j", "there is no option -j"),
            ("--timeout", "--timeout needs a value"),
        ] {
            assert_eq!(parse(text).unwrap_err().0, words);
        }
        let words = |result: Result<u32, Usage>| result.unwrap_err().0;
        assert_eq!(words(parse("").unwrap().number("N")), "N is missing");
        assert_eq!(words(parse("x").unwrap().number("N")), "N: x is no such number");
        assert_eq!(parse("1 2").unwrap().end().unwrap_err().0, "1 is too much");
        assert_eq!(parse("1").unwrap().command().unwrap_err().0, "1 is too much");
        assert_eq!(
            parse("--").unwrap().command().unwrap_err().0,
            "-- COMMAND is missing"
        );
    }
}
