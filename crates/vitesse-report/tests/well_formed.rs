//! Whatever is handed over, what comes out is well-formed, shows the text as text, and says the same twice.

use proptest::prelude::*;
use vitesse_report::chart::{
    BarChart, Chart, FULL, HALF, HeatMap, Histogram, LineChart, ScatterChart, Series, Svg,
};
use vitesse_report::{Content, Page, Table, Thumbnail, left, right};

fn parse(xml: &str) -> Result<roxmltree::Document<'_>, TestCaseError> {
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    roxmltree::Document::parse_with_options(xml, options)
        .map_err(|error| TestCaseError::fail(format!("{error}\n{xml}")))
}

/// Text that tries to get out.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("</title><script>alert(1)</script>".to_string()),
        Just("\" onload=\"alert(1)".to_string()),
        Just("]]> &amp; <!-- ' \u{0}\u{1b}[2J\u{ffff}".to_string()),
        Just("deit_small_patch16_224.fb_in1k — 猫 😀 deit_small_patch16_224.fb_in1k".to_string()),
        ".{0,20}",
    ]
}

/// Numbers of every kind, the broken ones often.
fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::MIN),
        Just(0.0),
        Just(5e-324),
        -1e3f64..1e3,
        any::<f64>(),
    ]
}

fn size() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![Just(FULL), Just(HALF), (any::<u32>(), any::<u32>())]
}

prop_compose! {
    fn charts()(
        title in text(),
        names in prop::collection::vec(text(), 1..10),
        rows in prop::collection::vec(prop::collection::vec(value(), 0..6), 0..10),
        counts in prop::collection::vec(prop::collection::vec(any::<u64>(), 0..6), 0..10),
        size in size(),
        log: bool,
    ) -> Vec<Svg> {
        let mut line = LineChart::new(&title).x_label(&names[0]).y_label(&title).size(size);
        let mut scatter = ScatterChart::new(&title).x_label(&names[0]).y_label(&title).size(size);
        let mut bars = BarChart::new(&title, &names).x_label(&title).width(size.0);
        if log {
            line = line.log_x().log_y();
            scatter = scatter.log_x();
        }
        for (name, row) in names.iter().zip(&rows) {
            let points = || row.iter().zip(row.iter().rev()).map(|(x, y)| (*x, *y));
            line = line.series(Series::new(name, points()).band(points()));
            scatter = scatter.series(name, points().map(|(x, y)| (name.as_str(), x, y)));
            bars = bars.series(name, row.clone());
        }
        let heat = HeatMap::new(&title, &names, &names, &rows).labels(&title, &title).width(size.0);
        let confusion = HeatMap::confusion(&title, &names, &counts).width(size.0);
        let histogram = Histogram::new(&title, rows.concat()).x_label(&title).size(size);
        let all: [&dyn Chart; 6] = [&line, &scatter, &bars, &heat, &confusion, &histogram];
        all.into_iter().map(|chart| chart.draw()).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn charts_are_well_formed(charts in charts()) {
        for chart in charts {
            let inline = chart.inline();
            let standalone = chart.standalone();
            for (xml, namespace) in [(&inline, None), (&standalone, Some("http://www.w3.org/2000/svg"))] {
                let document = parse(xml)?;
                let root = document.root_element();
                prop_assert_eq!(root.tag_name().name(), "svg");
                prop_assert_eq!(root.tag_name().namespace(), namespace);
                for element in root.descendants().filter(|node| node.is_element()) {
                    prop_assert!(element.tag_name().name() != "script");
                    for attribute in element.attributes() {
                        let (name, value) = (attribute.name(), attribute.value());
                        prop_assert!(!name.starts_with("on") && name != "id", "{name}");
                        if ["x", "y", "width", "height"].contains(&name) {
                            let number: f64 = value.parse().unwrap();
                            prop_assert!(number.is_finite() && number.abs() < 1e6, "{name}={value}");
                            prop_assert!(number >= 0.0 || name == "x" || name == "y", "{name}={value}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn pages_are_well_formed_and_hold_text_as_text(words in prop::collection::vec(text(), 8)) {
        let table = Table::new([left(&words[0]), right(&words[1])]).row([&words[2], &words[3]]);
        let thumbnail = Thumbnail::new(&words[4], 1, 1, &[1, 2, 3]).unwrap();
        let chart = BarChart::new(&words[5], &words).series(&words[6], [1.0, 2.0]);
        let content = Content::new()
            .text(&words[0])
            .warning(&words[1])
            .table(&table)
            .charts(&[&chart, &chart])
            .command(&words[2])
            .preformatted(&words[3])
            .images(&[thumbnail])
            .details(&words[4], Content::new().text(&words[5]));
        let page = Page::new(&words[0])
            .summary(&words[1])
            .card(&words[2], &words[3], &words[4])
            .section(&words[5], content)
            .provenance([(&words[6], &words[7])]);
        let html = page.render();
        let document = parse(&html)?;
        prop_assert_eq!(document.descendants().filter(|node| node.has_tag_name("script")).count(), 0);
        let shown = document.descendants().find(|node| node.has_tag_name("h1")).unwrap();
        let plain = words[0].chars().all(|c| !c.is_control() && c != '\u{ffff}' && c != '\u{fffe}');
        prop_assert!(!plain || shown.text().unwrap_or_default() == words[0]);
        prop_assert_eq!(html, page.render());
    }
}
