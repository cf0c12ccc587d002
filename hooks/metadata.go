// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"errors"
	"fmt"

	"libvirt.org/go/libvirt"
)

// Enable asks for dom's system calls: in the running domain with live, in the
// persistent configuration with config, in both with both, and with neither in
// the running domain if it is running and else in the configuration, as virsh
// does with --live, --config and --current. exits says which transitions trap;
// nil leaves that as it is. Asking twice changes nothing.
//
// An element that is there but not understood is left alone and reported as a
// wrapped *[ConfigError]. The other errors are libvirt's, wrapped: a domain
// that is not running (live), one that is transient (config), a denied or lost
// connection.
func Enable(dom *libvirt.Domain, live, config bool, exits *Exits) error {
	targets, err := metadataTargets(dom, live, config)
	if err != nil {
		return fmt.Errorf("enable tracing: %w", err)
	}
	// Look at every target before changing one, so that an element that is not
	// understood changes nothing at all.
	type change struct {
		target libvirt.DomainModificationImpact
		want   Config
	}
	var changes []change
	for _, target := range targets {
		cfg, err := readConfig(dom, target)
		var bad *ConfigError
		if errors.As(err, &bad) {
			return fmt.Errorf("enable tracing: %w (disable removes the element)", err)
		}
		if err != nil {
			return fmt.Errorf("enable tracing: %w", err)
		}
		want := cfg
		want.Trace = true
		if exits != nil {
			want.Exits = *exits
		}
		if want != cfg {
			changes = append(changes, change{target, want})
		}
	}
	for _, c := range changes {
		if err := dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, c.want.element(), MetadataKey, NamespaceURI, c.target); err != nil {
			return fmt.Errorf("enable tracing: write metadata: %w", err)
		}
	}
	return nil
}

// element returns the element that asks for c, which has Trace. libvirt adds the
// namespace and the prefix itself.
func (c Config) element() string {
	var trace string
	if c.Exits != ExitsBoth {
		trace = fmt.Sprintf(" exits=%q", c.Exits)
	}
	return "<frail><trace" + trace + "/>" + c.Sequence.element() + c.Record.element() + "</frail>"
}

// Disable removes Frail's element from dom, understood or not. live, config and
// the errors are as in [Enable]. Disabling twice changes nothing.
func Disable(dom *libvirt.Domain, live, config bool) error {
	targets, err := metadataTargets(dom, live, config)
	if err != nil {
		return fmt.Errorf("disable tracing: %w", err)
	}
	var change libvirt.DomainModificationImpact
	for _, target := range targets {
		element, err := readElement(dom, target)
		if err != nil {
			return fmt.Errorf("disable tracing: %w", err)
		}
		if element != "" {
			change |= target
		}
	}
	if change == 0 {
		return nil
	}
	if err := dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, "", "", NamespaceURI, change); err != nil {
		return fmt.Errorf("disable tracing: remove metadata: %w", err)
	}
	return nil
}

// metadataTargets returns the copies of dom's XML that live and config name:
// DOMAIN_AFFECT_LIVE, DOMAIN_AFFECT_CONFIG or both.
func metadataTargets(dom *libvirt.Domain, live, config bool) ([]libvirt.DomainModificationImpact, error) {
	if !live && !config {
		active, err := dom.IsActive()
		if err != nil {
			return nil, fmt.Errorf("read domain state: %w", err)
		}
		live, config = active, !active
	}
	var targets []libvirt.DomainModificationImpact
	if live {
		targets = append(targets, libvirt.DOMAIN_AFFECT_LIVE)
	}
	if config {
		targets = append(targets, libvirt.DOMAIN_AFFECT_CONFIG)
	}
	return targets, nil
}

// readElement returns Frail's element in one copy of dom's XML, empty if that
// has none.
func readElement(dom *libvirt.Domain, target libvirt.DomainModificationImpact) (string, error) {
	element, err := dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, NamespaceURI, target)
	if errors.Is(err, libvirt.ERR_NO_DOMAIN_METADATA) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read metadata: %w", err)
	}
	return element, nil
}

// readConfig returns what one copy of dom's XML asks for. It reads the whole
// document, because virDomainGetMetadata gives the element without its
// namespaces, and a wrong one would not be seen.
func readConfig(dom *libvirt.Domain, target libvirt.DomainModificationImpact) (Config, error) {
	element, err := readElement(dom, target)
	if err != nil || element == "" {
		return Config{}, err
	}
	var flags libvirt.DomainXMLFlags
	if target == libvirt.DOMAIN_AFFECT_CONFIG {
		flags = libvirt.DOMAIN_XML_INACTIVE
	}
	doc, err := dom.GetXMLDesc(flags)
	if err != nil {
		return Config{}, fmt.Errorf("read domain XML: %w", err)
	}
	return ParseConfig([]byte(doc))
}
