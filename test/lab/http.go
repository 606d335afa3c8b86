package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Dial connects from the machine's network namespace. The address must be
// numeric: there is no resolver in the lab.
func (m *Machine) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return dial(ctx, m.ns[:1], network, address)
}

func dial(ctx context.Context, ns namespaces, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := ns.enter(func() (err error) {
		// To a numeric address, DialContext makes its socket on this thread.
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Get makes an HTTP request from the machine and returns the answer's body.
// Every call is a connection of its own. Any status but 200 is an error.
func (m *Machine) Get(ctx context.Context, url string) (string, error) {
	return get(ctx, m.Dial, url)
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func get(ctx context.Context, dial dialer, url string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", fmt.Errorf("GET %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: %s: %s", url, response.Status, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}

// checkHTTP is nil when the URL answers 200.
func checkHTTP(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
