package inside

import (
	"fmt"
	"net"
	"net/http"
	"os"
)

// What Serve listens on in a pod.
const (
	HTTPPort = 80
	UDPPort  = 7
)

// Serve is the program in a pod. Over HTTP it tells who asks:
//
//	/          a line for people: this pod, its node, and the client's address
//	/clientip  the client's address and port, nothing else
//	/hostname  the pod's name
//
// Over UDP it sends back what it gets. It writes a line to standard output when it listens.
func Serve(pod, node string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s on %s sees you as %s\n", pod, node, host)
	})
	mux.HandleFunc("/clientip", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
	mux.HandleFunc("/hostname", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, pod) })

	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", HTTPPort))
	if err != nil {
		return err
	}
	echo, err := net.ListenPacket("udp", fmt.Sprintf(":%d", UDPPort))
	if err != nil {
		return err
	}
	go reflect(echo)
	fmt.Fprintln(os.Stdout, "listening")
	return http.Serve(listener, mux)
}

func reflect(conn net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteTo(buf[:n], from)
	}
}
