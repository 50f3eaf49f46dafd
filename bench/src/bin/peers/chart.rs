//! The report's figure.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::contenders::{EMPTY, ONNX, OURS, PLAIN, SKLEARN};
use crate::goals::{Measures, Samples};

const SIZE: (u32, u32) = (960, 300);
const OUR_COLOUR: RGBColor = RGBColor(0, 114, 178);
const PEER_COLOUR: RGBColor = RGBColor(150, 150, 150);

/// Three panels of dots on a logarithmic axis: cold start, one warm call, memory. Dots, because the length of a
/// bar says nothing on such an axis.
pub fn draw(path: &Path, measured: &BTreeMap<&'static str, Measures>) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |e: String| anyhow!("{}: {e}", path.display());
    area.fill(&WHITE).map_err(|e| failed(e.to_string()))?;
    let panels = area.split_evenly((1, 3));
    for (panel, (title, what)) in panels.iter().zip([
        ("Cold start, ms (log scale)", "cold_ms"),
        ("One warm call, µs (log scale)", "warm_us"),
        ("Peak memory, MB (log scale)", "peak_rss_mb"),
    ]) {
        dots(panel, title, what, measured).map_err(|e| failed(e.to_string()))?;
    }
    area.present().map_err(|e| failed(e.to_string()))
}

type Panel<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn dots(
    panel: &Panel<'_>,
    title: &str,
    what: &str,
    measured: &BTreeMap<&'static str, Measures>,
) -> Result<(), Box<dyn std::error::Error>> {
    let names = [SKLEARN, ONNX, PLAIN, OURS, EMPTY];
    let value = |name: &str| {
        measured
            .get(name)
            .and_then(|m| m.get(what))
            .map_or(f64::NAN, Samples::median)
    };
    let values = names.map(value);
    let low = values.into_iter().fold(f64::INFINITY, f64::min) / 2.0;
    let high = values.into_iter().fold(0.0, f64::max) * 4.0;
    let mut chart = ChartBuilder::on(panel)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .y_label_area_size(if what == "cold_ms" { 140 } else { 4 })
        .build_cartesian_2d((low..high).log_scale(), 0.0..names.len() as f64)?;
    for (i, (name, value)) in names.into_iter().zip(values).enumerate() {
        let y = i as f64;
        let colour = if name == OURS {
            OUR_COLOUR
        } else {
            PEER_COLOUR
        };
        let line = [(low, y + 0.5), (high, y + 0.5)];
        chart.draw_series(LineSeries::new(line, PEER_COLOUR.mix(0.3)))?;
        chart.draw_series([Circle::new((value, y + 0.5), 6, colour.filled())])?;
        let number = if value < 100.0 {
            format!("{value:.1}")
        } else {
            format!("{value:.0}")
        };
        let beside_the_line = Pos::new(HPos::Left, VPos::Center);
        let style = ("sans-serif", 13)
            .into_text_style(panel)
            .pos(beside_the_line);
        if what == "cold_ms" {
            let (x, y) = chart.backend_coord(&(low, y + 0.5));
            let (left, top) = panel.get_base_pixel();
            panel.draw_text(name, &style, (x - left - 136, y - top))?;
        }
        let beside = EmptyElement::at((value, y + 0.5)) + Text::new(number, (10, 0), style);
        chart.draw_series([beside])?;
    }
    Ok(())
}
