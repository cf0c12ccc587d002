// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"frail/api"
	"frail/cmd/internal/config"
)

const (
	// scrapeTimeout bounds what a scrape waits for: Prometheus itself gives up after 10
	// seconds by default.
	scrapeTimeout = 5 * time.Second

	// maxScrapes is how many may wait at a time.
	maxScrapes = 16

	// clientTimeout bounds how long a client may take to ask, and to read the answer.
	clientTimeout = 10 * time.Second

	// idleTimeout bounds how long a client may keep a connection open between scrapes.
	idleTimeout = 5 * time.Minute
)

// Stats implements api.FrailServer.
func (s *server) Stats(_ context.Context, req *api.StatsRequest) (*api.StatsResponse, error) {
	domains := make([]*domain, 0, len(req.GetDomains()))
	for _, key := range req.GetDomains() {
		d, err := s.domain(key)
		if err != nil {
			return nil, err
		}
		domains = append(domains, d)
	}
	if len(domains) == 0 {
		domains = s.manager.list()
	}
	if len(domains) == 0 {
		if err := s.unavailable(); err != nil {
			return nil, err
		}
	}
	from, err := s.manager.host.domainSources(domains)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "cannot read figures: %v", err)
	}
	resp := new(api.StatsResponse)
	for _, d := range from {
		stats := &api.DomainStats{Uuid: d.uuid, Name: d.name}
		for _, f := range domainFigures {
			f.read(d, func(value float64, labels ...string) {
				stats.Stats = append(stats.Stats, &api.Stat{Key: f.key(labels), Value: value})
			})
		}
		resp.Domains = append(resp.Domains, stats)
	}
	return resp, nil
}

// collector gives Prometheus the figures of a server.
type collector struct {
	server         *server
	domain, daemon []*prometheus.Desc // of domainFigures and daemonFigures
}

func newCollector(s *server) *collector {
	return &collector{server: s, domain: descs(domainFigures, domainLabels...), daemon: descs(daemonFigures)}
}

func descs[S any](figures []figure[S], labels ...string) []*prometheus.Desc {
	var all []*prometheus.Desc
	for _, f := range figures {
		names := slices.Clone(labels)
		for _, l := range f.labels {
			names = append(names, l.name)
		}
		all = append(all, prometheus.NewDesc(f.name, f.help, names, nil))
	}
	return all
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range slices.Concat(c.domain, c.daemon) {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	domains, err := c.server.manager.host.domainSources(c.server.manager.list())
	if err != nil {
		to <- prometheus.NewInvalidMetric(c.domain[0], err)
		return
	}
	daemon, err := c.server.daemonSource(domains)
	if err != nil {
		to <- prometheus.NewInvalidMetric(c.daemon[0], err)
		return
	}
	send(to, daemonFigures, c.daemon, daemon)
	for _, d := range domains {
		send(to, domainFigures, c.domain, d, d.name, d.uuid)
	}
}

// send passes on what is known now of figures; labels are the values of those that all have.
func send[S any](to chan<- prometheus.Metric, figures []figure[S], descs []*prometheus.Desc, from S, labels ...string) {
	for i, f := range figures {
		kind := prometheus.GaugeValue
		if f.counter() {
			kind = prometheus.CounterValue
		}
		f.read(from, func(value float64, own ...string) {
			m, err := prometheus.NewConstMetric(descs[i], kind, value, slices.Concat(labels, own)...)
			if err != nil {
				m = prometheus.NewInvalidMetric(descs[i], err)
			}
			to <- m
		})
	}
}

// listenMetrics opens what metrics are served at; the lock is nil for a port. The caller closes
// both.
func listenMetrics(at config.ListenAddress, group string) (net.Listener, *os.File, error) {
	if at.Network == "unix" {
		return listen(at.Address, group)
	}
	l, err := net.Listen(at.Network, at.Address)
	return l, nil, err
}

// newMetricsServer returns what serves the figures of s to Prometheus. Concurrent scrapes share
// one reading of them.
func newMetricsServer(s *server, log *slog.Logger) *http.Server {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(s))
	errors := slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            errors,
		ErrorHandling:       promhttp.HTTPErrorOnError,
		CoalesceGather:      true,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
	}))
	return &http.Server{
		Handler:      mux,
		ReadTimeout:  clientTimeout,
		WriteTimeout: scrapeTimeout + clientTimeout,
		IdleTimeout:  idleTimeout,
		ErrorLog:     errors,
	}
}
