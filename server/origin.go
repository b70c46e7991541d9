package server

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// proxies are the networks whose word is taken for whom they forward.
type proxies []netip.Prefix

func (p proxies) trusts(a netip.Addr) bool {
	return slices.ContainsFunc(p, func(n netip.Prefix) bool { return n.Contains(a) })
}

// client returns the address that the request came from, and whether that is
// what a proxy says. Of the addresses in X-Forwarded-For it is the last one that
// is not itself a trusted proxy: those before it can be made up.
func (p proxies) client(r *http.Request) (_ netip.Addr, forwarded bool) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, false // a test's recorder
	}
	address := peer.Addr().Unmap().WithZone("")
	if !p.trusts(address) {
		return address, false
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, err := parseHop(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		address, forwarded = a.Unmap().WithZone(""), true
		if !p.trusts(address) {
			break
		}
	}
	return address, forwarded
}

// parseHop reads an address of X-Forwarded-For, to which some proxies add the port.
func parseHop(s string) (netip.Addr, error) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a.Addr(), nil
	}
	return netip.ParseAddr(s)
}

// origin returns the scheme and the host that the client used, which signed URLs
// start with; where it named no host, the address that it reached. A trusted proxy
// says so in X-Forwarded-Proto and X-Forwarded-Host.
func (p proxies) origin(r *http.Request) string {
	scheme, host := "http", r.Host
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && host == "" {
		host = local.String() // HTTP/1.0 need not name one
	}
	if r.TLS != nil {
		scheme = "https"
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && p.trusts(peer.Addr().Unmap().WithZone("")) {
		if proto := last(r.Header.Values("X-Forwarded-Proto")); proto == "http" || proto == "https" {
			scheme = proto
		}
		if h := last(r.Header.Values("X-Forwarded-Host")); h != "" {
			if u, err := url.Parse("http://" + h); err == nil && u.Host == h {
				host = h
			}
		}
	}
	return scheme + "://" + host
}

// last returns the last element of a list that proxies append to.
func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	s := values[len(values)-1]
	return strings.TrimSpace(s[strings.LastIndexByte(s, ',')+1:])
}
