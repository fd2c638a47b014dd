//! Progress of long operations, on standard error: a bar on a terminal, a line for each stage elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use martlet_api::{Progress, ProgressUnit};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::Duration;

/// Shows one operation's progress; what it showed on a terminal is gone when it is dropped.
pub struct Reporter {
    way: Way,
    stage: RefCell<Option<String>>,
}

enum Way {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl Reporter {
    /// For an operation, described until its first stage is known. JSON goes with silence, unless a terminal
    /// watches: then standard error is not part of what is captured.
    pub fn new(operation: &str, quiet: bool, json: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let way = match (quiet, terminal, json) {
            (true, ..) | (_, false, true) => Way::Silent,
            (_, false, false) => Way::Lines,
            (_, true, _) => {
                let bar = ProgressBar::new_spinner().with_style(style("{spinner} {msg} {elapsed}"));
                bar.set_message(operation.to_string());
                bar.enable_steady_tick(Duration::from_millis(120));
                Way::Bar(bar)
            }
        };
        Self {
            way,
            stage: RefCell::default(),
        }
    }

    /// Shows where the operation is.
    pub fn show(&self, progress: &Progress) {
        let stage = crate::failure::printable(&progress.stage);
        let is_new = self.stage.borrow().as_ref() != Some(&stage);
        match &self.way {
            Way::Silent => (),
            Way::Lines if is_new => eprintln!("{stage}"),
            Way::Lines => (),
            Way::Bar(bar) => {
                if is_new {
                    bar.set_style(style(template(progress)));
                    bar.set_message(stage.clone());
                }
                match progress.total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
                bar.set_position(progress.done);
            }
        }
        if is_new {
            *self.stage.borrow_mut() = Some(stage);
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
        }
    }
}

fn template(progress: &Progress) -> &'static str {
    match (progress.unit, progress.total) {
        (ProgressUnit::Bytes, Some(_)) => {
            "{spinner} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {elapsed}"
        }
        (ProgressUnit::Bytes, None) => "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec} {elapsed}",
        (ProgressUnit::Items, Some(_)) => "{spinner} {msg} {wide_bar} {pos}/{len} {elapsed}",
        (ProgressUnit::Items, None) => "{spinner} {msg} {pos} {elapsed}",
        (ProgressUnit::None, _) => "{spinner} {msg} {elapsed}",
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates are constant")
        .progress_chars("=> ")
}
