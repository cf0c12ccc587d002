// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

//go:generate go test -tags libvirt_dlopen -run ^TestReference$ -update .

var update = flag.Bool("update", false, "write docs/metrics.md")

const referencePath = "../../docs/metrics.md"

const referenceIntro = `<!-- Generated from cmd/fraild/figures.go: make generate -->
# Metrics

fraild serves them to Prometheus, by HTTP under ` + "`/metrics`" + `, if ` + "`frail.toml`" + ` says where:

    [metrics]
    listen = "127.0.0.1:9472"    # or "unix:/run/frail/metrics.sock"

Nothing asks a client who it is, so only a loopback address or a unix socket will do. ` + "`frail domstats [DOMAIN...]`" + `
shows those of domains without Prometheus: a metric's name there lacks ` + "`frail_` and `_total`" + `, and the values of its
labels follow it, as in ` + "`vm_exits.syscall`" + `.

` + "`sysctl kernel.bpf_stats_enabled=1`" + ` makes the kernel measure BPF programs, all of the host's, at the cost of
reading a clock twice each time one runs; 0 ends that.

There is no count by system call: the kernel keeps none that costs nothing while nobody asks. ` + "`frail count`" + ` counts
what it reads.

A scrape takes an ioctl for each armed domain and does not touch a guest. At most ` + "%d" + ` wait at a time, and %v at most.
`

// reference is docs/metrics.md.
func reference() string {
	var b strings.Builder
	fmt.Fprintf(&b, referenceIntro, maxScrapes, scrapeTimeout)
	b.WriteString("\n## Of each domain\n\n" +
		"All have the labels `domain`, its name, and `uuid`. What comes from the kernel module is there while the domain is\n" +
		"armed, and begins at 0 each time it is. The other counters begin when fraild starts or the domain is defined.\n\n")
	table(&b, domainFigures)
	b.WriteString("\n## Of fraild\n\n")
	table(&b, daemonFigures)
	return b.String()
}

func table[S any](b *strings.Builder, figures []figure[S]) {
	b.WriteString("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, f := range figures {
		kind := "gauge"
		if f.counter() {
			kind = "counter"
		}
		var labels []string
		for _, l := range f.labels {
			labels = append(labels, fmt.Sprintf("`%s`: %s", l.name, l.values))
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", f.name, kind, strings.Join(labels, "; "), f.help)
	}
}

// docs/metrics.md is what the figures say.
func TestReference(t *testing.T) {
	want := reference()
	if *update {
		if err := os.WriteFile(referencePath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/metrics.md is not what cmd/fraild/figures.go says: run go generate ./cmd/fraild")
	}
}

// labelsOf returns the labels of each metric.
func labelsOf() map[string][]string {
	all := make(map[string][]string)
	add := func(name string, common []string, labels []label) {
		all[name] = slices.Clone(common)
		for _, l := range labels {
			all[name] = append(all[name], l.name)
		}
	}
	for _, f := range domainFigures {
		add(f.name, domainLabels, f.labels)
	}
	for _, f := range daemonFigures {
		add(f.name, nil, f.labels)
	}
	return all
}

// panel is what of a panel of Grafana's is looked at.
type panel struct {
	ID         int
	Type       string
	Title      string
	Repeat     string
	GridPos    *struct{ H, W, X, Y int }
	Datasource *source
	Targets    []struct {
		Datasource         *source
		Expr, RefID        string
		LegendFormat       string
		EditorMode, Format string
	}
	Panels []panel
}

type source struct{ Type, UID string }

// The dashboard is one that Grafana imports, and asks for what fraild has.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../packaging/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID, Title    string
		SchemaVersion int
		Time          *struct{ From, To string }
		Panels        []panel
		Templating    struct {
			List []struct {
				Name, Type string
				Query      any
				Datasource *source
			}
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || d.Title == "" || d.SchemaVersion == 0 || d.Time == nil || len(d.Panels) == 0 {
		t.Errorf("dashboard %q, %q, schema %d, time %v, %d panels", d.UID, d.Title, d.SchemaVersion, d.Time, len(d.Panels))
	}
	datasource := &source{"prometheus", "${datasource}"}
	same := func(s *source) bool { return s != nil && *s == *datasource }

	queries := make(map[string]string) // by where they are
	legends := make(map[string]string)
	variables := make(map[string]bool)
	for _, v := range d.Templating.List {
		variables[v.Name] = true
		switch v.Type {
		case "datasource":
			if v.Query != "prometheus" {
				t.Errorf("variable %s is of %v", v.Name, v.Query)
			}
		case "query":
			query, ok := v.Query.(map[string]any)
			if !ok || !same(v.Datasource) {
				t.Fatalf("variable %s: %v of %v", v.Name, v.Query, v.Datasource)
			}
			// label_values(SELECTOR, LABEL)
			inner := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(fmt.Sprint(query["query"]))
			if inner == nil {
				t.Fatalf("variable %s: %v", v.Name, query)
			}
			queries["variable "+v.Name] = "count by (" + inner[2] + ") (" + inner[1] + ")"
		default:
			t.Errorf("variable %s is of type %q", v.Name, v.Type)
		}
	}

	ids := make(map[int]bool)
	var rows []string
	var check func(panels []panel)
	check = func(panels []panel) {
		for _, p := range panels {
			if p.ID == 0 || ids[p.ID] || p.Type == "" || p.Title == "" || p.GridPos == nil || p.GridPos.W < 1 || p.GridPos.X+p.GridPos.W > 24 {
				t.Errorf("panel %+v", p)
			}
			ids[p.ID] = true
			if p.Type == "row" {
				rows = append(rows, p.Title)
				if p.Repeat != "" && !variables[p.Repeat] {
					t.Errorf("row %q is repeated by %q, which there is not", p.Title, p.Repeat)
				}
				check(p.Panels)
				continue
			}
			if len(p.Targets) == 0 || !same(p.Datasource) {
				t.Errorf("panel %q has %d queries of %v", p.Title, len(p.Targets), p.Datasource)
			}
			for _, q := range p.Targets {
				if q.RefID == "" || !same(q.Datasource) {
					t.Errorf("panel %q has query %+v", p.Title, q)
				}
				where := p.Title + " " + q.RefID
				if queries[where] != "" {
					t.Errorf("two queries are %q", where)
				}
				queries[where], legends[where] = q.Expr, q.LegendFormat
			}
		}
	}
	check(d.Panels)
	if !slices.Equal(rows, []string{"Hosts", "$domain"}) {
		t.Errorf("rows are %q", rows)
	}

	known := labelsOf()
	asked := make(map[string]bool)
	metric := regexp.MustCompile(`\bfrail_\w+`)
	used := regexp.MustCompile(`by \(([^)]*)\)|(\w+)=~?"|\{\{(\w+)\}\}`)
	for where, query := range queries {
		labels := []string{"instance"} // of Prometheus itself
		names := metric.FindAllString(query, -1)
		for _, name := range names {
			asked[name] = true
			if _, ok := known[name]; !ok {
				t.Errorf("%s asks for %s, which docs/metrics.md does not have", where, name)
			}
			labels = append(labels, known[name]...)
		}
		if len(names) == 0 {
			t.Errorf("%s asks for nothing of fraild: %s", where, query)
		}
		for _, m := range used.FindAllStringSubmatch(query+legends[where], -1) {
			for l := range strings.SplitSeq(m[1]+m[2]+m[3], ",") {
				if l = strings.TrimSpace(l); l != "" && !slices.Contains(labels, l) {
					t.Errorf("%s uses label %q, which %q do not have: %s", where, l, names, query)
				}
			}
		}
		for _, v := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(query, -1) {
			if !variables[v[1]] && v[1] != "__rate_interval" {
				t.Errorf("%s uses $%s, which there is not", where, v[1])
			}
		}
	}
	for _, f := range domainFigures {
		if !asked[f.name] && !strings.HasPrefix(f.name, "frail_session_") {
			t.Errorf("nothing shows %s", f.name)
		}
	}
	t.Run("promtool", func(t *testing.T) { checkQueries(t, queries) })
}

// checkQueries has Prometheus' own parser look at queries.
func checkQueries(t *testing.T, queries map[string]string) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed: Debian's package prometheus has it")
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	variable := regexp.MustCompile(`\$(\w+)`)
	for where, query := range queries {
		query = strings.ReplaceAll(query, "$__rate_interval", "1m")
		name := "q" + regexp.MustCompile(`\W`).ReplaceAllString(where, "_")
		rules = append(rules, rule{name, variable.ReplaceAllString(query, "x")})
	}
	// JSON is YAML.
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
}
