//! Figures: points, lines and regions, with an alternative text, and readable without colours.

use std::error::Error;
use std::ops::Range;

use base64::Engine;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Three classes in colours that people with any colour vision can tell apart
/// (Okabe and Ito, Color Universal Design, 2008). Each also has a marker of its own.
pub const COLOURS: [RGBColor; 3] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
];

/// What drawing returns.
pub type Drawn = Result<(), Box<dyn Error>>;

type Root<'r> = DrawingArea<SVGBackend<'r>, Shift>;
type Chart<'a, 'r> = ChartContext<'a, SVGBackend<'r>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Point = (f64, f64);
type Classify<'a> = Box<dyn Fn(f64, f64) -> usize + 'a>;

/// Draw a figure of `size` pixels with Plotters' own calls and show it; `alt` says in words what it shows.
///
/// As an image, because JupyterLab shows drawings in HTML only in notebooks that it trusts, and a
/// notebook fresh from a clone is not one of them.
///
/// # Errors
/// Whatever `draw` returns.
pub fn figure<Draw>(alt: &str, size: (u32, u32), draw: Draw) -> Drawn
where
    Draw: FnOnce(Root<'_>) -> Drawn,
{
    let mut svg = String::new();
    draw(SVGBackend::with_string(&mut svg, size).into_drawing_area())?;
    let data = base64::prelude::BASE64_STANDARD.encode(svg);
    let image = format!(
        r#"<img src="data:image/svg+xml;base64,{data}" alt="{}" width="{}" height="{}">"#,
        crate::escape(alt),
        size.0,
        size.1
    );
    evcxr_runtime::mime_type("text/html").text(image);
    Ok(())
}

/// A figure with two axes. Its series get a marker each (circle, triangle, cross) beside their colour.
pub struct Figure<'a> {
    alt: String,
    axes: [Axis; 2],
    series: Vec<Series>,
    levels: Vec<f64>,
    labels: Vec<(String, Point)>,
    regions: Option<(Vec<String>, Classify<'a>)>,
    legend: SeriesLabelPosition,
}

#[derive(Clone)]
struct Axis {
    name: String,
    log: bool,
    range: Option<Range<f64>>,
}

struct Series {
    name: String,
    points: Vec<Point>,
    line: bool,
}

impl<'a> Figure<'a> {
    /// An empty figure: what it shows in words, and the names of its axes.
    pub fn new(alt: &str, axes: [&str; 2]) -> Self {
        Self {
            alt: alt.to_owned(),
            axes: axes.map(|name| Axis {
                name: name.to_owned(),
                log: false,
                range: None,
            }),
            series: Vec::new(),
            levels: Vec::new(),
            labels: Vec::new(),
            regions: None,
            legend: SeriesLabelPosition::UpperLeft,
        }
    }

    /// A marker for each point. A series without a name is not in the legend.
    pub fn scatter(self, name: &str, points: impl IntoIterator<Item = Point>) -> Self {
        self.with(name, points, false)
    }

    /// A line through the points, with markers where there are few.
    pub fn line(self, name: &str, points: impl IntoIterator<Item = Point>) -> Self {
        self.with(name, points, true)
    }

    /// Colour and name the parts of the plane by what `classify` answers there: an index into `names`.
    pub fn regions(
        mut self,
        names: &[impl AsRef<str>],
        classify: impl Fn(f64, f64) -> usize + 'a,
    ) -> Self {
        let names = names.iter().map(|name| name.as_ref().to_owned()).collect();
        self.regions = Some((names, Box::new(classify)));
        self
    }

    /// A grey line from left to right.
    pub fn level(mut self, y: f64) -> Self {
        self.levels.push(y);
        self
    }

    /// A dot with a text beside it.
    pub fn label(mut self, text: &str, at: Point) -> Self {
        self.labels.push((text.to_owned(), at));
        self
    }

    /// A logarithmic x-axis.
    pub fn log_x(mut self) -> Self {
        self.axes[0].log = true;
        self
    }

    /// A logarithmic y-axis.
    pub fn log_y(mut self) -> Self {
        self.axes[1].log = true;
        self
    }

    /// What the x-axis shows; else all points and a little more.
    pub fn x(mut self, range: Range<f64>) -> Self {
        self.axes[0].range = Some(range);
        self
    }

    /// What the y-axis shows; else all points and a little more.
    pub fn y(mut self, range: Range<f64>) -> Self {
        self.axes[1].range = Some(range);
        self
    }

    /// The legend in another corner than the upper left.
    pub fn legend(mut self, corner: SeriesLabelPosition) -> Self {
        self.legend = corner;
        self
    }

    /// Draw it and show it.
    ///
    /// # Errors
    /// When there is nothing to draw, or a value has no place on its axis.
    pub fn show(self) -> Drawn {
        figure(&self.alt, (600, 380), |root| self.draw(&root))
    }

    fn with(mut self, name: &str, points: impl IntoIterator<Item = Point>, line: bool) -> Self {
        self.series.push(Series {
            name: name.to_owned(),
            points: points.into_iter().collect(),
            line,
        });
        self
    }

    fn draw(&self, root: &Root<'_>) -> Drawn {
        root.fill(&WHITE)?;
        let [x, y] = [self.range(0)?, self.range(1)?];
        let mut chart = ChartBuilder::on(root)
            .margin(10)
            .margin_right(25)
            .x_label_area_size(45)
            .y_label_area_size(70)
            .build_cartesian_2d(x.clone(), y.clone())?;
        if let Some((names, classify)) = &self.regions {
            self.draw_regions(&mut chart, names, classify, [&x, &y])?;
        }
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc(&self.axes[0].name)
            .y_desc(&self.axes[1].name)
            .x_label_formatter(&|x| self.axes[0].tick(*x))
            .y_label_formatter(&|y| self.axes[1].tick(*y))
            .label_style(("sans-serif", 15))
            .draw()?;
        for y in &self.levels {
            let y = self.axes[1].place(*y)?;
            chart.draw_series(LineSeries::new([(x.start, y), (x.end, y)], BLACK.mix(0.5)))?;
        }
        for (k, series) in self.series.iter().enumerate() {
            self.draw_series(&mut chart, k, series)?;
        }
        for (text, at) in &self.labels {
            let dot = Circle::new((0, 0), 4, BLACK.filled());
            let text = Text::new(text.clone(), (8, 6), ("sans-serif", 15));
            chart.draw_series([EmptyElement::at(self.place(*at)?) + dot + text])?;
        }
        // Regions carry the names already.
        if self.regions.is_none() && self.series.iter().any(|series| !series.name.is_empty()) {
            chart
                .configure_series_labels()
                .position(self.legend.clone())
                .label_font(("sans-serif", 15))
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }
        Ok(())
    }

    fn draw_series<'c, 'r: 'c>(
        &self,
        chart: &mut Chart<'c, 'r>,
        k: usize,
        series: &Series,
    ) -> Drawn {
        let colour = COLOURS[k % 3];
        let points = series.points.iter().map(|point| self.place(*point));
        let points: Vec<Point> = points.collect::<Result<_, _>>()?;
        if series.line {
            chart.draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(2),
            ))?;
        }
        let drawn = if series.line && points.len() > 30 {
            &points[..0]
        } else {
            &points[..]
        };
        let markers = drawn.iter().copied().map(|at| marker(k, at, colour));
        let in_legend = chart.draw_series(markers)?;
        if !series.name.is_empty() {
            in_legend
                .label(series.name.as_str())
                .legend(move |at| marker(k, at, colour));
        }
        Ok(())
    }

    /// A grid of squares, joined along each row where the answer stays the same, and each class's name in the middle
    /// of its squares.
    fn draw_regions(
        &self,
        chart: &mut Chart<'_, '_>,
        names: &[String],
        classify: &Classify<'a>,
        [x, y]: [&Range<f64>; 2],
    ) -> Drawn {
        const SQUARES: [usize; 2] = [150, 80];
        let at = |range: &Range<f64>, i: usize, n: usize| {
            range.start + (range.end - range.start) * i as f64 / n as f64
        };
        let mut middles = vec![(0.0, 0.0, 0.0); names.len()];
        for row in 0..SQUARES[1] {
            let bottom = at(y, row, SQUARES[1]);
            let answers: Vec<usize> = (0..SQUARES[0])
                .map(|column| classify(at(x, column, SQUARES[0]), bottom).min(names.len() - 1))
                .collect();
            let mut left = 0;
            for run in answers.chunk_by(|a, b| a == b) {
                let (k, right) = (run[0], left + run.len());
                let corners = [
                    (at(x, left, SQUARES[0]), bottom),
                    (at(x, right, SQUARES[0]), at(y, row + 1, SQUARES[1])),
                ];
                chart.draw_series([Rectangle::new(corners, COLOURS[k % 3].mix(0.2).filled())])?;
                let n = run.len() as f64;
                middles[k].0 += n;
                middles[k].1 += n * (corners[0].0 + corners[1].0) / 2.0;
                middles[k].2 += n * bottom;
                left = right;
            }
        }
        for (name, (n, x, y)) in names.iter().zip(middles).filter(|(_, (n, ..))| *n > 0.0) {
            let style = ("sans-serif", 17).into_font().color(&BLACK);
            chart.draw_series([Text::new(name.clone(), (x / n, y / n), style)])?;
        }
        Ok(())
    }

    fn place(&self, (x, y): Point) -> Result<Point, String> {
        Ok((self.axes[0].place(x)?, self.axes[1].place(y)?))
    }

    /// From the smallest to the largest of all that is drawn along an axis, and a margin.
    fn range(&self, axis: usize) -> Result<Range<f64>, String> {
        let along = &self.axes[axis];
        if let Some(range) = &along.range {
            return Ok(along.place(range.start)?..along.place(range.end)?);
        }
        let drawn = self.series.iter().flat_map(|series| &series.points);
        let points = drawn.chain(self.labels.iter().map(|(_, at)| at));
        let values = points.map(|at| if axis == 0 { at.0 } else { at.1 });
        let levels = self.levels.iter().copied().filter(|_| axis == 1);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.chain(levels) {
            let value = along.place(value)?;
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            return Err(
                "nothing to draw: give the figure a point, or a range with .x() and .y()".into(),
            );
        }
        let margin = if high > low { (high - low) * 0.06 } else { 0.5 };
        Ok(low - margin..high + margin)
    }
}

impl Axis {
    /// Where a value stands on the axis.
    fn place(&self, value: f64) -> Result<f64, String> {
        let name = &self.name;
        match (self.log, value) {
            (_, value) if !value.is_finite() => Err(format!("{name}: {value} cannot be drawn")),
            (true, value) if value <= 0.0 => Err(format!(
                "{name}: {value} has no place on a logarithmic axis, which begins above zero"
            )),
            (true, value) => Ok(value.log10()),
            (false, value) => Ok(value),
        }
    }

    /// The text at a place of the axis; on a logarithmic one only whole powers of ten have one.
    fn tick(&self, place: f64) -> String {
        if !self.log {
            return format!("{}", (place * 1e6).round() / 1e6);
        }
        let power = place.round();
        match power {
            _ if (place - power).abs() > 1e-6 => String::new(),
            -3.0..=6.0 => format!("{}", 10f64.powf(power)),
            _ => format!("1e{power}"),
        }
    }
}

/// The marker of series `k`: a circle, a triangle or a cross.
fn marker<'r, At: Clone + 'static>(
    k: usize,
    at: At,
    colour: RGBColor,
) -> DynElement<'static, SVGBackend<'r>, At> {
    match k % 3 {
        0 => Circle::new(at, 4, colour.mix(0.8).filled()).into_dyn(),
        1 => TriangleMarker::new(at, 6, colour.mix(0.8).filled()).into_dyn(),
        _ => Cross::new(at, 4, colour.stroke_width(2)).into_dyn(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(figure: &Figure) -> Result<String, String> {
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, (600, 380)).into_drawing_area();
        figure.draw(&root).map_err(|e| e.to_string())?;
        drop(root);
        Ok(svg)
    }

    fn axes() -> Figure<'static> {
        Figure::new("three points", ["x", "y"])
    }

    #[test]
    fn each_series_has_a_marker_of_its_own_and_a_name() {
        let names = ["first", "second", "third"];
        let figure = names.iter().zip(1..).fold(axes(), |figure, (name, k)| {
            figure.scatter(name, [(f64::from(k), 1.0)])
        });
        let svg = svg(&figure).unwrap();
        assert_eq!(
            svg.matches("<circle").count(),
            2,
            "in the plane and in the legend"
        );
        assert_eq!(svg.matches("<polygon").count(), 2);
        assert!(names.iter().all(|name| svg.contains(name)), "{svg}");
    }

    #[test]
    fn regions_are_named_where_they_lie() {
        let halves = axes()
            .regions(&["low", "high"], |x, _| usize::from(x > 5.0))
            .x(0.0..10.0)
            .y(0.0..1.0);
        let svg = svg(&halves).unwrap();
        assert!(svg.contains("low") && svg.contains("high"));
        assert_eq!(
            svg.matches("opacity=\"0.2\"").count(),
            160,
            "two rectangles in each of 80 rows"
        );
    }

    #[test]
    fn a_logarithmic_axis_names_powers_of_ten() {
        let figure = axes().log_y().line("", [(0.0, 1e-8), (1.0, 1e2)]);
        let svg = svg(&figure).unwrap();
        assert!(svg.contains("1e-8") && svg.contains("100"), "{svg}");
    }

    #[test]
    fn what_cannot_be_drawn_is_an_error() {
        let error_of = |figure: Figure| svg(&figure).unwrap_err();
        assert_eq!(
            error_of(axes()),
            "nothing to draw: give the figure a point, or a range with .x() and .y()"
        );
        assert_eq!(
            error_of(axes().scatter("", [(f64::NAN, 0.0)])),
            "x: NaN cannot be drawn"
        );
        assert!(
            error_of(axes().log_y().line("", [(1.0, 0.0)]))
                .starts_with("y: 0 has no place on a log")
        );
    }
}
