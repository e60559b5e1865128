//! Charts as SVG, to be put into a page: no scripts, no outside resources. Colours come from the page's style sheet.

use std::fmt::Write;

/// Size of a chart, and room at its sides, in SVG units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;

/// Text as HTML and SVG want it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// An axis: what it shows, from where to where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis<'a> {
    pub(super) title: &'a str,
    pub(super) from: f64,
    pub(super) to: f64,
    /// Whether values are powers of ten of what is shown.
    pub(super) log: bool,
}

impl<'a> Axis<'a> {
    /// A linear axis with room around the values; around 1 where there are none.
    pub(super) fn around(title: &'a str, values: impl Iterator<Item = f64> + Clone) -> Axis<'a> {
        let finite = values.filter(|value| value.is_finite());
        let from = finite.clone().fold(f64::INFINITY, f64::min);
        let to = finite.fold(f64::NEG_INFINITY, f64::max);
        let (from, to) = if from <= to { (from, to) } else { (1.0, 1.0) };
        let room = if to > from { 0.08 * (to - from) } else { 0.1 * to.abs().max(1e-3) };
        Axis { title, from: from - room, to: to + room, log: false }
    }

    /// 4 to 10 values between the ends: multiples of 1, 2 or 5 times a power of ten.
    fn ticks(&self) -> Vec<f64> {
        let span = self.to - self.from;
        let power = 10f64.powf((span / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| span / step <= 8.0);
        let step = step.unwrap_or(10.0 * power).max(if self.log { 1.0 } else { 0.0 });
        let first = (self.from / step - 1e-9).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        (first..=last).take(100).map(|i| i as f64 * step).collect()
    }

    fn label(&self, value: f64) -> String {
        if self.log {
            return format!("10<tspan baseline-shift=\"super\" font-size=\"9\">{value:.0}</tspan>");
        }
        let digits = (1.0 - ((self.to - self.from) / 5.0).log10()).ceil().clamp(0.0, 9.0) as usize;
        let text = format!("{value:.digits$}");
        // Whole numbers without ".0", all of an axis alike.
        text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
    }
}

/// A chart being drawn.
pub(super) struct Chart<'a> {
    x: Axis<'a>,
    y: Axis<'a>,
    body: String,
}

impl<'a> Chart<'a> {
    /// Axes and grid.
    pub(super) fn new(x: Axis<'a>, y: Axis<'a>) -> Chart<'a> {
        let mut chart = Chart { x, y, body: String::new() };
        for value in x.ticks() {
            let at = chart.at_x(value);
            chart.line("grid", (at, TOP), (at, HEIGHT - BOTTOM));
            chart.words("middle", (at, HEIGHT - BOTTOM + 18.0), &x.label(value));
        }
        for value in y.ticks() {
            let at = chart.at_y(value);
            chart.line("grid", (LEFT, at), (WIDTH - RIGHT, at));
            chart.words("end", (LEFT - 6.0, at + 4.0), &y.label(value));
        }
        chart.words("middle", ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 6.0), &escape(x.title));
        let (left, middle) = (14.0, (TOP + HEIGHT - BOTTOM) / 2.0);
        let _ = write!(
            chart.body,
            r#"<text text-anchor="middle" transform="translate({left} {middle}) rotate(-90)">{}</text>"#,
            escape(y.title)
        );
        chart
    }

    fn at_x(&self, value: f64) -> f64 {
        LEFT + (value - self.x.from) / (self.x.to - self.x.from) * (WIDTH - LEFT - RIGHT)
    }

    fn at_y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (value - self.y.from) / (self.y.to - self.y.from) * (HEIGHT - TOP - BOTTOM)
    }

    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        // Writing to a String does not fail.
        let _ = write!(self.body, r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#);
    }

    fn words(&mut self, anchor: &str, (x, y): (f64, f64), markup: &str) {
        let _ = write!(self.body, r#"<text text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{markup}</text>"#);
    }

    /// A bar of a histogram, from the lower end of the y axis up.
    pub(super) fn bar(&mut self, from: f64, to: f64, height: f64, title: &str) {
        let (x1, x2, top) = (self.at_x(from), self.at_x(to), self.at_y(height));
        let (width, height) = ((x2 - x1 - 1.0).max(0.5), self.at_y(self.y.from) - top);
        let _ = write!(
            self.body,
            r#"<rect class="bar" x="{x1:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}"><title>{}</title></rect>"#,
            escape(title)
        );
    }

    /// A vertical line with words beside it, on line `row` of the words.
    pub(super) fn mark(&mut self, value: f64, words: &str, row: usize) {
        let at = self.at_x(value);
        self.line("mark", (at, TOP), (at, HEIGHT - BOTTOM));
        let (anchor, x) = if at > WIDTH * 0.75 { ("end", at - 4.0) } else { ("start", at + 4.0) };
        self.words(anchor, (x, TOP + 12.0 + 15.0 * row as f64), &escape(words));
    }

    /// A dot of a series with its value when pointed at.
    pub(super) fn dot(&mut self, series: usize, (x, y): (f64, f64), radius: f64, title: &str) {
        let (x, y) = (self.at_x(x), self.at_y(y));
        let _ = write!(
            self.body,
            r#"<circle class="dot s{}" cx="{x:.1}" cy="{y:.1}" r="{radius:.1}"><title>{}</title></circle>"#,
            series % SERIES,
            escape(title)
        );
    }

    /// A line through the points of a series.
    pub(super) fn path(&mut self, series: usize, points: &[(f64, f64)]) {
        let list: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", self.at_x(*x), self.at_y(*y))).collect();
        let _ = write!(self.body, r#"<polyline class="path s{}" points="{}"/>"#, series % SERIES, list.join(" "));
    }

    /// A vertical bar of an error.
    pub(super) fn error(&mut self, x: f64, (from, to): (f64, f64)) {
        let at = self.at_x(x);
        let (low, high) = (self.at_y(from), self.at_y(to));
        self.line("error", (at, low), (at, high));
        [low, high].into_iter().for_each(|y| self.line("error", (at - 4.0, y), (at + 4.0, y)));
    }

    /// Words beside a point.
    pub(super) fn label(&mut self, (x, y): (f64, f64), words: &str) {
        let at = self.at_x(x);
        let (anchor, x) = if at > WIDTH * 0.7 { ("end", at - 10.0) } else { ("start", at + 10.0) };
        let y = self.at_y(y) - 8.0;
        self.words(anchor, (x, y), &escape(words));
    }

    /// The finished element.
    pub(super) fn svg(self, name: &str) -> String {
        format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">{}</svg>"#, escape(name), self.body)
    }
}

/// Colours of series in the style sheet: classes `s0`..
pub(super) const SERIES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let axis = |from, to| Axis { title: "", from, to, log: false };
        assert_eq!(axis(0.0, 10.0).ticks(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(axis(-0.1, 0.1).ticks().len(), 5);
        for (from, to) in [(0.0, 1e-6), (17.0, 23.4), (-5.0, 1e9), (20.9, 21.2)] {
            assert!((3..=10).contains(&axis(from, to).ticks().len()), "{from} {to}");
        }
        assert_eq!(Axis { log: true, ..axis(-7.5, -1.0) }.ticks(), [-7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0]);
    }

    #[test]
    fn an_axis_without_values_or_with_one_has_a_span() {
        for values in [&[][..], &[3.0], &[0.0], &[f64::NAN], &[2.0, 2.0]] {
            let axis = Axis::around("", values.iter().copied());
            assert!(axis.from < axis.to, "{values:?}");
            assert!(!axis.ticks().is_empty(), "{values:?}");
        }
    }

    #[test]
    fn names_cannot_break_the_page() {
        let mut chart = Chart::new(Axis::around("<x>", [1.0].into_iter()), Axis::around("&", [1.0].into_iter()));
        chart.dot(0, (1.0, 1.0), 3.0, "\"</svg>");
        let svg = chart.svg("a\"b");
        assert!(svg.contains("&lt;x&gt;") && svg.contains("&quot;&lt;/svg&gt;") && svg.contains("a&quot;b"));
        assert_eq!(svg.matches("</svg>").count(), 1);
    }
}
