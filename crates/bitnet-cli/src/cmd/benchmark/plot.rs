//! Curves over threads, context and batch as SVG pictures, which follow the reader's light or dark theme.

use bitnet::bench::{BenchReport, Case, Line, Measurement, Setup, Work};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::model::{build, machine};
use crate::failure::Failure;
use crate::report::plural;

/// Width and height of a panel with one line of legend.
const PANEL: (u32, u32) = (560, 380);

/// What a light theme shows, and what a dark one has in its place. The picture is drawn in the first; its style sheet exchanges
/// them. Colours of curves are halfway and serve both.
const TEXT: (RGBColor, &str) = (RGBColor(0x1F, 0x23, 0x28), "#E6EDF3");
const FAINT: (RGBColor, &str) = (RGBColor(0xD0, 0xD7, 0xDE), "#3D444D");
const CURVES: [RGBColor; 8] = [
    RGBColor(0x3B, 0x82, 0xD6),
    RGBColor(0xD9, 0x6B, 0x27),
    RGBColor(0x2E, 0x9E, 0x6B),
    RGBColor(0x9A, 0x62, 0xC8),
    RGBColor(0xC0, 0x4A, 0x6E),
    RGBColor(0x8A, 0x85, 0x2A),
    RGBColor(0x2A, 0x9D, 0xB5),
    RGBColor(0x8C, 0x6D, 0x5A),
];

/// Height of a line of the head of a picture: the model, the machine, the command.
const HEAD_LINE: u32 = 20;

/// One axis of each.
#[derive(Debug, PartialEq)]
struct Panel {
    title: &'static str,
    x: &'static str,
    y: Y,
    curves: Vec<Curve>,
}

/// What a panel shows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Y {
    /// Tokens per second, with what the probes allow.
    Rate,
    /// The share of that.
    Share,
}

/// A curve.
#[derive(Debug, PartialEq)]
struct Curve {
    name: String,
    points: Vec<Point>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    x: f64,
    rate: f64,
    bound: f64,
    share: f64,
}

impl Point {
    fn new(x: usize, line: &Line) -> Self {
        let (rate, share) = (line.rate.median, line.of_bound.median);
        Self { x: x as f64, rate, bound: line.bound, share }
    }

    fn y(&self, y: Y) -> f64 {
        match y {
            Y::Rate => self.rate,
            Y::Share => 100.0 * self.share,
        }
    }
}

/// A picture for each of threads, context and batch of which there are several values: the name of its file, and its text.
/// `command` is what made the report.
pub fn pictures(
    report: &BenchReport,
    command: &str,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let pictures: Vec<_> =
        panels(report).into_iter().filter(|(_, panels)| !panels.is_empty()).collect();
    if pictures.is_empty() {
        return Err(Failure::input(
            "there is no curve to plot: nothing was measured at two places",
        )
        .hint("give several --threads, --ctx or --batch-sizes")
        .into());
    }
    let draw = |(name, panels): (_, Vec<Panel>)| Ok((name, picture(report, command, &panels)?));
    pictures.into_iter().map(draw).collect()
}

/// Two panels beside each other, under a head.
fn picture(report: &BenchReport, command: &str, panels: &[Panel]) -> anyhow::Result<String> {
    let title = format!("{}: tokens per second, and what the machine allows", report.model.name);
    let mut head = vec![title.clone(), machine(&report.machine)];
    head.push(format!(
        "bitnet {}; medians of {}",
        build(&report.build),
        report.settings.iterations
    ));
    head.extend(folded(command));
    let rows = panels.len().div_ceil(2);
    let top = 16 + HEAD_LINE * head.len() as u32;
    let most = panels.iter().map(|panel| places(panel).1).max().unwrap_or(1);
    let height = PANEL.1 + (most - 1) * LEGEND_LINE;
    let size = (PANEL.0 * 2, height * rows as u32 + top);
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        let (above, below) = root.split_vertically(top);
        for (index, line) in head.into_iter().enumerate() {
            let place = (18, 14 + index as i32 * HEAD_LINE as i32);
            above
                .draw(&Text::new(line, place, text(if index == 0 { 18 } else { 13 })))
                .map_err(|error| anyhow::anyhow!("the plot cannot be drawn: {error}"))?;
        }
        for (panel, area) in panels.iter().zip(below.split_evenly((rows, 2))) {
            draw(panel, &area)
                .map_err(|error| anyhow::anyhow!("the plot cannot be drawn: {error}"))?;
        }
        root.present()?;
    }
    Ok(themed(&picture, &title))
}

/// A command in lines that fit.
fn folded(command: &str) -> Vec<String> {
    /// Letters of a line.
    const WIDTH: usize = 150;
    let mut lines = vec![String::new()];
    for word in command.split(' ') {
        let line = lines.last_mut().expect("there is one from the beginning");
        match line.is_empty() || line.len() + word.len() < WIDTH {
            true if line.is_empty() => line.push_str(word),
            true => *line += &format!(" {word}"),
            false => lines.push(format!("    {word}")),
        }
    }
    lines
}

fn panels(report: &BenchReport) -> [(&'static str, Vec<Panel>); 3] {
    let is_prompt = |work| matches!(work, Work::Prompt { .. });
    let first_generation = |work| matches!(work, Work::Generation { .. });
    let depth = |line: &Line| match line.work {
        Work::Generation { depth, .. } => Some(depth),
        _ => None,
    };
    let sequences = |line: &Line| match line.work {
        Work::Batch { sequences, .. } => Some(sequences),
        _ => None,
    };
    let both = |title, x, curves: Box<dyn Fn() -> Vec<Curve> + '_>| {
        let panel = move |y| Panel { title, x, y, curves: curves() };
        let panels: Vec<_> = [Y::Rate, Y::Share].map(panel).into();
        panels.into_iter().filter(|panel| !panel.curves.is_empty()).collect::<Vec<_>>()
    };
    let generation = both(
        "Generation, by threads",
        "threads",
        Box::new(move || over_threads(report, first_generation)),
    );
    let prompt =
        both("Prompt, by threads", "threads", Box::new(move || over_threads(report, is_prompt)));
    let context = both(
        "Generation, by context",
        "tokens in the cache",
        Box::new(move || over_lines(report, depth)),
    );
    let batch = both(
        "All sequences, by batch",
        "sequences together",
        Box::new(move || over_lines(report, sequences)),
    );
    let threads = generation.into_iter().chain(prompt).collect();
    [("threads.svg", threads), ("context.svg", context), ("batch.svg", batch)]
}

fn measured(report: &BenchReport) -> impl Iterator<Item = (&Case, &Measurement)> {
    report.cases.iter().filter_map(|case| Some((case, case.measurement()?)))
}

/// Of the level, the forms and the threads those that are not the same everywhere; threads not where they are the axis.
fn name(report: &BenchReport, case: &Case, m: &Measurement, with_threads: bool) -> String {
    let differs = |what: &dyn Fn(&Case, &Measurement) -> String| {
        let own = what(case, m);
        measured(report).any(|(case, m)| what(case, m) != own).then_some(own)
    };
    let level = |_: &Case, m: &Measurement| m.kernel.to_owned();
    let threads = |case: &Case, _: &Measurement| plural(case.setup.threads, "thread");
    let parts = [
        differs(&level),
        differs(&|_, m| m.forms.packing.clone()),
        differs(&|_, m| format!("{} head", m.forms.head)),
        differs(&|_, m| format!("{} KV", m.forms.kv_dtype)),
        differs(&threads).filter(|_| with_threads),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() { level(case, m) } else { parts.join(", ") }
}

/// A curve for everything but threads. Packings may differ with these where they are chosen while loading.
fn over_threads(report: &BenchReport, wanted: impl Fn(Work) -> bool + Copy) -> Vec<Curve> {
    let mut curves: Vec<(Setup, Curve)> = Vec::new();
    for (case, m) in measured(report) {
        let Some(line) = m.line(wanted) else { continue };
        let point = Point::new(case.setup.threads, line);
        let key = Setup { threads: 0, ..case.setup.clone() };
        match curves.iter_mut().find(|(other, _)| *other == key) {
            Some((_, curve)) => curve.points.push(point),
            None => curves
                .push((key, Curve { name: name(report, case, m, false), points: vec![point] })),
        }
    }
    long_enough(curves.into_iter().map(|(_, curve)| curve).collect())
}

/// A curve for each case.
fn over_lines(report: &BenchReport, x: impl Fn(&Line) -> Option<usize>) -> Vec<Curve> {
    let curve = |(case, m): (&Case, &Measurement)| {
        let name = name(report, case, m, true);
        let points = m.lines.iter().filter_map(|line| Some(Point::new(x(line)?, line)));
        Curve { name, points: points.collect() }
    };
    long_enough(measured(report).map(curve).collect())
}

fn long_enough(mut curves: Vec<Curve>) -> Vec<Curve> {
    for curve in &mut curves {
        curve.points.sort_by(|a, b| a.x.total_cmp(&b.x));
        curve.points.dedup_by_key(|point| point.x);
    }
    curves.retain(|curve| curve.points.len() > 1);
    curves
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT.0)
}

fn draw<'a>(panel: &Panel, area: &Area<'a>) -> Result<(), DrawError<'a>> {
    let (points, y) = (|| panel.curves.iter().flat_map(|curve| &curve.points), panel.y);
    let most_x = points().map(|point| point.x).fold(0.0, f64::max);
    let allowed = |point: &Point| if y == Y::Rate { point.bound } else { 100.0 };
    let most_y = points().map(|point| point.y(y).max(allowed(point))).fold(0.0, f64::max);
    let lines = legend(panel, area)?;
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .margin_top(LEGEND_TOP + lines * LEGEND_LINE + 8)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..most_x * 1.03, 0.0..most_y * 1.06)?;
    // Threads and sequences are whole numbers, and a step of less than one has nothing to say.
    let whole = |x: &f64| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT.0)
        .axis_style(FAINT.0)
        .label_style(text(15))
        .axis_desc_style(text(15))
        .x_desc(panel.x)
        .y_desc(match y {
            Y::Rate => "tokens/s",
            Y::Share => "% of bound",
        })
        .x_labels(10)
        .y_labels(7)
        .x_label_formatter(&whole)
        .y_label_formatter(&|y| if most_y < 10.0 { format!("{y:.1}") } else { format!("{y:.0}") })
        .draw()?;
    for (curve, color) in panel.curves.iter().zip(CURVES.iter().cycle()) {
        let bound = curve.points.iter().map(|point| (point.x, allowed(point)));
        chart.draw_series(DashedLineSeries::new(bound, 5, 5, color.stroke_width(1)))?;
        let reached = || curve.points.iter().map(|point| (point.x, point.y(y)));
        chart.draw_series(LineSeries::new(reached(), color.stroke_width(2)))?;
        chart.draw_series(reached().map(|point| Circle::new(point, 3, color.filled())))?;
    }
    Ok(())
}

/// Where the legend begins under the panel's title, and the height of its lines.
const LEGEND_TOP: u32 = 40;
const LEGEND_LINE: u32 = 20;

/// What says of the dashed lines what they are.
const DASHED: &str = "dashed: what the probes allow";
/// Width of the stroke beside a name.
const STROKE: i32 = 32;

/// Where each entry of a legend begins, across and in which line, and how many lines there are.
fn places(panel: &Panel) -> (Vec<(i32, u32)>, u32) {
    /// Width of a letter; fonts differ, so there is some room.
    const LETTER: i32 = 7;
    let strokes = panel.curves.iter().map(|curve| (&*curve.name, STROKE));
    let (mut places, mut x, mut line) = (Vec::new(), 18, 0);
    for (name, stroke) in strokes.chain([(DASHED, 0)]) {
        let width = stroke + LETTER * name.len() as i32;
        if x > 18 && x + width > PANEL.0 as i32 {
            (x, line) = (18, line + 1);
        }
        places.push((x, line));
        x += width + 16;
    }
    (places, line + 1)
}

/// Draws the title, and below it which curve is which. Returns the lines that the legend takes.
fn legend<'a>(panel: &Panel, area: &Area<'a>) -> Result<u32, DrawError<'a>> {
    area.draw(&Text::new(panel.title, (18, 14), text(20)))?;
    let (places, lines) = places(panel);
    let curves = panel.curves.iter().zip(CURVES.iter().cycle());
    let names = curves.map(|(curve, color)| (&*curve.name, Some(*color)));
    for ((name, color), (x, line)) in names.chain([(DASHED, None)]).zip(places) {
        let y = (LEGEND_TOP + line * LEGEND_LINE) as i32;
        if let Some(color) = color {
            let ends = vec![(x, y + 7), (x + STROKE - 10, y + 7)];
            area.draw(&PathElement::new(ends, color.stroke_width(3)))?;
        }
        let x = if color.is_some() { x + STROKE } else { x };
        area.draw(&Text::new(name, (x, y), text(15)))?;
    }
    Ok(lines)
}

/// Adds a title for those who hear pictures, and the colours of a dark theme.
fn themed(picture: &str, title: &str) -> String {
    let dark: String = [TEXT, FAINT]
        .iter()
        .map(|(RGBColor(r, g, b), dark)| {
            let light = format!("#{r:02X}{g:02X}{b:02X}");
            format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
        })
        .collect();
    let title = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let style = format!("<style>@media (prefers-color-scheme:dark){{{dark}}}</style>");
    match picture.find("<svg").and_then(|start| Some(start + picture[start..].find('>')? + 1)) {
        Some(end) => {
            format!("{}\n<title>{title}</title>\n{style}{}", &picture[..end], &picture[end..])
        }
        None => picture.to_owned(),
    }
}
