package transfer

import "net/http"

// discreet keeps a redirect from showing a URL that is not to be shown: net/http
// sends the one that was redirected as the Referer, to any host, and quotes a
// Location that is no URL in its error.
type discreet struct{ http.RoundTripper }

// discreetly returns a client like the given one.
func discreetly(c *http.Client) *http.Client {
	d := *c
	if d.Transport == nil {
		d.Transport = http.DefaultTransport
	}
	d.Transport = discreet{d.Transport}
	return &d
}

// RoundTrip sends the request.
func (t discreet) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Header.Get("Referer") != "" {
		request = request.Clone(request.Context())
		request.Header.Del("Referer")
	}
	response, err := t.RoundTripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if _, err := request.URL.Parse(response.Header.Get("Location")); err != nil {
		response.Body.Close()
		return nil, fault("redirects to what is no URL")
	}
	return response, nil
}
