//! Plots as SVG.
//!
//! ```text
//!  Plot { title, axes, shape } ──► ticks chosen here, everything in plain elements ──► SVG text
//! ```
//!
//! Axes are scaled here and not by the library, so that each kind of scale is the same type and its ticks are whole steps,
//! tens or doublings. SVG names the fonts and leaves them to who shows it: a host without any draws the same file.

use crate::BenchError;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 460;
const LEGEND_WIDTH: u32 = 230;
const FONT: &str = "sans-serif";
const TITLE_PX: u32 = 18;
const TEXT_PX: u32 = 13;
const SMALL_PX: u32 = 11;
/// As many letters as there is room for beside each other, in most fonts.
const SMALL_COLUMNS: usize = 140;
const LEGEND_COLUMNS: usize = 28;
/// From line to line.
const LINE_PX: i32 = 16;
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(222, 222, 222);
/// Told apart also by people who see few colours (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
];

/// What is to be drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// What its file is called, without the ending.
    pub name: String,
    /// Above it.
    pub title: String,
    /// Below the title: what else must be known to understand it.
    pub conditions: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// What is in it.
    pub shape: Shape,
}

/// An axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What it counts, and in what.
    pub label: String,
    /// How.
    pub scale: Scale,
}

/// Distances on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal for equal differences, from 0.
    Linear,
    /// Equal for equal ratios, with a tick at each power of ten.
    Tens,
    /// Equal for equal ratios, with a tick at each power of two.
    Doublings,
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Values over numbers.
    Lines(Vec<Line>),
    /// Values over names: for each name its bars, one for each series, beside or on top of each other.
    Bars {
        /// Below them.
        names: Vec<String>,
        /// By series.
        series: Vec<Bars>,
        /// On top of each other.
        is_stacked: bool,
    },
}

/// One series of values over numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// In the legend.
    pub name: String,
    /// How it is drawn.
    pub look: Look,
    /// Which colour: one number, one colour.
    pub colour: usize,
    /// By ascending `x`.
    pub spots: Vec<Spot>,
}

/// A value, and what it varied between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spot {
    /// To the right.
    pub x: f64,
    /// Upwards.
    pub y: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A line through marks: measured.
    Marked,
    /// A line alone: calculated.
    Plain,
    /// Marks alone: measured, where a line is calculated.
    Marks,
}

/// One series of values over names.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// In the legend.
    pub name: String,
    /// One for each name; none where it is not a number.
    pub values: Vec<f64>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

impl Plot {
    /// The text of an SVG file.
    pub fn svg(&self) -> Result<String, BenchError> {
        let mut text = String::new();
        let drawn = {
            let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
            self.draw(&root)
        };
        drawn
            .map_err(|error| BenchError::Other(format!("the plot {} cannot be drawn: {error}", self.name)))?;
        Ok(text)
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        root.fill(&WHITE)?;
        let middle = WIDTH as i32 / 2;
        let top = plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Center,
            plotters::style::text_anchor::VPos::Top,
        );
        let title = (FONT, TITLE_PX).into_font().color(&INK).pos(top);
        let small = (FONT, SMALL_PX).into_font().color(&INK).pos(top);
        root.draw_text(&self.title, &title, (middle, 10))?;
        let mut down = 34;
        for line in textwrap::wrap(&self.conditions, SMALL_COLUMNS) {
            root.draw_text(&line, &small, (middle, down))?;
            down += SMALL_PX as i32 + 4;
        }
        let (_, below) = root.split_vertically(down);
        // The names of a single series' bars are below them.
        let has_legend = !matches!(&self.shape, Shape::Bars { series, .. } if series.len() == 1);
        let legend_width = if has_legend { LEGEND_WIDTH } else { 0 };
        let (plotted, legend) = below.split_horizontally(WIDTH - legend_width);
        let (x, y) = self.ranges();
        let mut chart = ChartBuilder::on(&plotted)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        self.draw_axes(&chart, &plotted, (x, y))?;
        match &self.shape {
            Shape::Lines(lines) => self.draw_lines(&mut chart, lines)?,
            Shape::Bars {
                series, is_stacked, ..
            } => self.draw_bars(&mut chart, series, *is_stacked, y.0)?,
        }
        if has_legend {
            self.draw_legend(&legend)?;
        }
        root.present()
    }

    /// From where to where the axes go, as they are scaled.
    fn ranges(&self) -> ((f64, f64), (f64, f64)) {
        match &self.shape {
            Shape::Lines(lines) => {
                let spots = || lines.iter().flat_map(|line| &line.spots);
                let x = self.x.scale.range(spots().map(|spot| spot.x));
                let y = spots().flat_map(|spot| [spot.y, spot.min, spot.max]);
                (widened(x, 0.03), self.y.scale.range(y))
            }
            Shape::Bars {
                names,
                series,
                is_stacked,
            } => {
                let all = series.iter().flat_map(|bars| bars.values.iter().copied());
                let y = match is_stacked {
                    true => self
                        .y
                        .scale
                        .range((0..names.len()).map(|at| height_at(series, at))),
                    false => self.y.scale.range(all),
                };
                ((0.0, names.len().max(1) as f64), y)
            }
        }
    }

    fn x_ticks(&self, range: (f64, f64)) -> Vec<(f64, String)> {
        match &self.shape {
            Shape::Lines(_) => self.x.scale.ticks(range),
            Shape::Bars { names, .. } => {
                let at_middle = |(at, name): (usize, &String)| (at as f64 + 0.5, name.clone());
                names.iter().enumerate().map(at_middle).collect()
            }
        }
    }

    fn draw_axes(&self, chart: &Chart<'_, '_>, area: &Area<'_>, (x, y): ((f64, f64), (f64, f64))) -> Drawn {
        use plotters::style::text_anchor::{HPos, Pos, VPos};
        let plane = chart.plotting_area();
        let text = |px: u32, pos: Pos| (FONT, px).into_font().color(&INK).pos(pos);
        let base = area.get_base_pixel();
        // Text goes into the whole area, whose pixels begin elsewhere than the root's.
        let pixel = |at: (f64, f64)| {
            let (right, down) = plane.map_coordinate(&at);
            (right - base.0, down - base.1)
        };
        for (at, label) in self.y.scale.ticks(y) {
            plane.draw(&PathElement::new(vec![(x.0, at), (x.1, at)], FAINT))?;
            let (right, down) = pixel((x.0, at));
            let style = text(TEXT_PX, Pos::new(HPos::Right, VPos::Center));
            area.draw_text(&label, &style, (right - 6, down))?;
        }
        for (at, label) in self.x_ticks(x) {
            if matches!(self.shape, Shape::Lines(_)) {
                plane.draw(&PathElement::new(vec![(at, y.0), (at, y.1)], FAINT))?;
            }
            let (right, down) = pixel((at, y.0));
            let style = text(TEXT_PX, Pos::new(HPos::Center, VPos::Top));
            for (line, row) in label.lines().zip(0..) {
                area.draw_text(line, &style, (right, down + 6 + LINE_PX * row))?;
            }
        }
        plane.draw(&PathElement::new(vec![(x.0, y.1), (x.0, y.0), (x.1, y.0)], INK))?;
        let (middle, _) = pixel(((x.0 + x.1) / 2.0, y.0));
        let (_, height) = area.dim_in_pixel();
        let style = text(TEXT_PX, Pos::new(HPos::Center, VPos::Bottom));
        area.draw_text(&self.x.label, &style, (middle, height as i32 - 8))?;
        let (_, middle) = pixel((x.0, (y.0 + y.1) / 2.0));
        let upright = (FONT, TEXT_PX)
            .into_font()
            .transform(FontTransform::Rotate270)
            .color(&INK)
            .pos(Pos::new(HPos::Center, VPos::Top));
        area.draw_text(&self.y.label, &upright, (10, middle))
    }

    fn draw_lines(&self, chart: &mut Chart<'_, '_>, lines: &[Line]) -> Drawn {
        let (to_x, to_y) = (self.x.scale, self.y.scale);
        for line in lines {
            let colour = colour(line.colour);
            let scaled: Vec<(f64, f64)> = line
                .spots
                .iter()
                .map(|spot| (to_x.scaled(spot.x), to_y.scaled(spot.y)))
                .collect();
            if line.look != Look::Marks {
                chart.draw_series([PathElement::new(scaled.clone(), colour.stroke_width(2))])?;
            }
            if line.look == Look::Plain {
                continue;
            }
            let whiskers = line.spots.iter().map(|spot| {
                let ends = [spot.min, spot.max].map(|end| (to_x.scaled(spot.x), to_y.scaled(end)));
                PathElement::new(ends.to_vec(), colour.stroke_width(1))
            });
            chart.draw_series(whiskers)?;
            chart.draw_series(scaled.iter().map(|at| Circle::new(*at, 4, colour.filled())))?;
        }
        Ok(())
    }

    fn draw_bars(&self, chart: &mut Chart<'_, '_>, series: &[Bars], is_stacked: bool, floor: f64) -> Drawn {
        use plotters::style::text_anchor::{HPos, Pos, VPos};
        const PART_OF_PLACE: f64 = 0.7;
        let count = if is_stacked { 1 } else { series.len().max(1) };
        let width = PART_OF_PLACE / count as f64;
        let value_style = (FONT, SMALL_PX)
            .into_font()
            .color(&INK)
            .pos(Pos::new(HPos::Center, VPos::Bottom));
        let names = series.iter().map(|bars| bars.values.len()).max().unwrap_or(0);
        for at in 0..names {
            let mut below = 0.0;
            let left = at as f64 + (1.0 - PART_OF_PLACE) / 2.0;
            for (number, bars) in series.iter().enumerate() {
                let Some(value) = bars.values.get(at).copied().filter(|value| value.is_finite()) else {
                    continue;
                };
                let column = if is_stacked { 0 } else { number };
                // Bars of a single series differ by name, and are told apart as series are.
                let colour = colour(if series.len() == 1 { at } else { number });
                let x = left + width * column as f64;
                let bottom = if below > 0.0 {
                    self.y.scale.scaled(below)
                } else {
                    floor
                };
                let top = self.y.scale.scaled(below + value).max(floor);
                let corners = [(x, bottom), (x + width * 0.96, top)];
                chart.draw_series([Rectangle::new(corners, colour.filled())])?;
                if is_stacked {
                    below += value;
                }
                let is_last = number + 1 == series.len();
                if !is_stacked || is_last {
                    let middle = (x + width * 0.48, top);
                    let words = plain(below.max(value));
                    let label = EmptyElement::at(middle) + Text::new(words, (0, -3), value_style.clone());
                    chart.draw_series([label])?;
                }
            }
        }
        Ok(())
    }

    fn draw_legend(&self, area: &Area<'_>) -> Drawn {
        let style = (FONT, TEXT_PX).into_font().color(&INK);
        let names: Vec<(&str, Option<Look>, usize)> = match &self.shape {
            Shape::Lines(lines) => lines
                .iter()
                .map(|line| (line.name.as_str(), Some(line.look), line.colour))
                .collect(),
            Shape::Bars { series, .. } => series
                .iter()
                .enumerate()
                .map(|(number, bars)| (bars.name.as_str(), None, number))
                .collect(),
        };
        let mut y = 24;
        for (name, look, number) in names {
            let colour = colour(number);
            match look {
                None => area.draw(&Rectangle::new([(4, y - 6), (24, y + 6)], colour.filled()))?,
                Some(Look::Marks) => area.draw(&Circle::new((14, y), 4, colour.filled()))?,
                Some(look) => {
                    area.draw(&PathElement::new(vec![(4, y), (24, y)], colour.stroke_width(2)))?;
                    if look == Look::Marked {
                        area.draw(&Circle::new((14, y), 4, colour.filled()))?;
                    }
                }
            }
            for line in textwrap::wrap(name, LEGEND_COLUMNS) {
                area.draw_text(&line, &style, (32, y - TEXT_PX as i32 / 2))?;
                y += LINE_PX;
            }
            y += 6;
        }
        Ok(())
    }
}

fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// How high the bars of a name are together.
fn height_at(series: &[Bars], at: usize) -> f64 {
    let values = series.iter().filter_map(|bars| bars.values.get(at));
    values.filter(|value| value.is_finite()).sum()
}

impl Scale {
    fn base(self) -> f64 {
        match self {
            Self::Doublings => 2.0,
            Self::Linear | Self::Tens => 10.0,
        }
    }

    /// Where on the axis a value is. What a ratio cannot reach is at its far end.
    fn scaled(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Tens | Self::Doublings => value.max(f64::MIN_POSITIVE).log(self.base()),
        }
    }

    /// From where to where the axis goes for these values, as they are scaled.
    fn range(self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let is_drawn = |value: &f64| value.is_finite() && (self == Self::Linear || *value > 0.0);
        let (low, high) = values
            .filter(is_drawn)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if low > high {
            return (0.0, 1.0);
        }
        match self {
            Self::Linear => (low.min(0.0), if high > 0.0 { high * 1.08 } else { 1.0 }),
            Self::Tens => {
                let (low, high) = (self.scaled(low).floor(), self.scaled(high));
                (low, (high + 0.1).max(low + 1.0))
            }
            Self::Doublings => {
                let (low, high) = (self.scaled(low), self.scaled(high));
                (low, high.max(low + 1.0))
            }
        }
    }

    /// Where ticks are, and what stands beside them.
    fn ticks(self, (low, high): (f64, f64)) -> Vec<(f64, String)> {
        let step = match self {
            Self::Linear => step_of(high - low),
            Self::Tens | Self::Doublings => 1.0,
        };
        let (first, last) = ((low / step).ceil() as i64, (high / step + 1e-9).floor() as i64);
        let label = |at: f64| match self {
            Self::Linear => plain(at),
            Self::Tens | Self::Doublings => plain(self.base().powf(at)),
        };
        (first..=last)
            .map(|number| number as f64 * step)
            .map(|at| (at, label(at)))
            .collect()
    }
}

/// 1, 2 or 5 of a power of ten, so that some five fit.
fn step_of(length: f64) -> f64 {
    let rough = length / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|digit| digit * power >= rough * 0.99);
    digit.unwrap_or(10.0) * power
}

fn widened((low, high): (f64, f64), by: f64) -> (f64, f64) {
    let more = (high - low) * by;
    (low - more, high + more)
}

/// A number as one would write it: three digits that count.
fn plain(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size < 1e-12 => "0".into(),
        _ if size >= 99.95 => format!("{value:.0}"),
        _ => {
            let decimals = (2 - size.log10().floor() as i32).clamp(0, 6) as usize;
            let text = format!("{value:.decimals$}");
            match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale) -> Axis {
        Axis {
            label: "clones".into(),
            scale,
        }
    }

    fn plot(shape: Shape, x: Scale, y: Scale) -> Plot {
        Plot {
            name: "p".into(),
            title: "A <title>".into(),
            conditions: "here".into(),
            x: axis(x),
            y: axis(y),
            shape,
        }
    }

    fn line(name: &str, spots: &[(f64, f64)]) -> Line {
        let spot = |&(x, y): &(f64, f64)| Spot { x, y, min: y, max: y };
        Line {
            name: name.into(),
            look: Look::Marked,
            colour: 0,
            spots: spots.iter().map(spot).collect(),
        }
    }

    #[test]
    fn what_is_said_of_a_plot_has_room() {
        let mut plot = plot(
            Shape::Lines(vec![line("a", &[(1.0, 1.0)])]),
            Scale::Linear,
            Scale::Linear,
        );
        plot.conditions = "of hosts, ".repeat(40);
        let svg = plot.svg().unwrap();
        let said = || svg.lines().filter(|line| line.contains("of hosts,"));
        assert!(said().all(|line| line.len() <= SMALL_COLUMNS), "{svg}");
        assert_eq!(svg.matches("of hosts,").count(), 40);
    }

    #[test]
    fn numbers_are_short() {
        let written = [0.0, 0.001, 0.25, 1.0, 2.5, 12.34, 99.9, 100.0, 1024.0, 1e6].map(plain);
        assert_eq!(
            written,
            [
                "0", "0.001", "0.25", "1", "2.5", "12.3", "99.9", "100", "1024", "1000000"
            ]
        );
    }

    #[test]
    fn ticks_are_whole_steps_tens_or_doublings() {
        let labels = |scale: Scale, low: f64, high: f64| -> Vec<String> {
            let range = scale.range([low, high].into_iter());
            scale.ticks(range).into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(
            labels(Scale::Linear, 3.0, 9.0),
            ["0", "2", "4", "6", "8"],
            "from 0 on"
        );
        assert_eq!(labels(Scale::Tens, 0.3, 40.0), ["0.1", "1", "10"]);
        assert_eq!(labels(Scale::Doublings, 1.0, 16.0), ["1", "2", "4", "8", "16"]);
        assert_eq!(labels(Scale::Tens, f64::NAN, -1.0).len(), 2, "nothing to show");
    }

    #[test]
    fn what_is_greater_is_higher() {
        let svg = plot(
            Shape::Lines(vec![line("up", &[(1.0, 1.0), (2.0, 10.0), (4.0, 100.0)])]),
            Scale::Doublings,
            Scale::Tens,
        )
        .svg()
        .unwrap();
        let marks: Vec<(f64, f64)> = svg
            .lines()
            .filter(|line| line.starts_with("<circle"))
            .map(|line| {
                let of = |what: &str| -> f64 {
                    let rest = line.split_once(what).unwrap().1;
                    rest.split('"').next().unwrap().parse().unwrap()
                };
                (of("cx=\""), of("cy=\""))
            })
            .collect();
        let [a, b, c, _legend] = marks[..] else {
            panic!("{svg}")
        };
        // Equal ratios are equally far from each other, on both axes.
        assert!(((b.0 - a.0) - (c.0 - b.0)).abs() <= 1.0 && b.0 > a.0, "{marks:?}");
        assert!(((a.1 - b.1) - (b.1 - c.1)).abs() <= 1.0 && a.1 > b.1, "{marks:?}");
        assert!(svg.contains("A &lt;title&gt;"), "words are words");
    }

    #[test]
    fn bars_lie_on_each_other_or_stand_beside() {
        let bars = |is_stacked| Shape::Bars {
            names: vec!["one".into(), "two".into()],
            series: vec![
                Bars {
                    name: "a".into(),
                    values: vec![1.0, 2.0],
                },
                Bars {
                    name: "b".into(),
                    values: vec![3.0, f64::NAN],
                },
            ],
            is_stacked,
        };
        let heights = |is_stacked| -> f64 {
            let plot = plot(bars(is_stacked), Scale::Linear, Scale::Linear);
            plot.ranges().1.1
        };
        assert!((heights(true) - 4.0 * 1.08).abs() < 1e-9);
        assert!((heights(false) - 3.0 * 1.08).abs() < 1e-9);
        for is_stacked in [true, false] {
            let svg = plot(bars(is_stacked), Scale::Linear, Scale::Linear)
                .svg()
                .unwrap();
            // The ground, three bars, two of the legend.
            assert_eq!(svg.matches("<rect").count(), 6, "{svg}");
        }
    }
}
