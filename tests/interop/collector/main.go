// Collector prints what go-ipfix's collector makes of the messages it receives.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vmware/go-ipfix/pkg/collector"
	"github.com/vmware/go-ipfix/pkg/entities"
	"github.com/vmware/go-ipfix/pkg/registry"
)

// record is a line of output.
type record struct {
	Exporter   string   `json:"exporter"`
	Domain     uint32   `json:"domain"`
	Sequence   uint32   `json:"sequence"`
	ExportTime uint32   `json:"exportTime"`
	Elements   [][2]any `json:"elements"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	address := flag.String("address", "127.0.0.1:0", "where to listen")
	protocol := flag.String("protocol", "tcp", "tcp or udp")
	lenient := flag.Bool("lenient", false, "take templates with unknown elements")
	cert := flag.String("cert", "", "certificate of the server, for TLS")
	key := flag.String("key", "", "its key")
	ca := flag.String("ca", "", "authority of the clients' certificates, which are then demanded")
	flag.Parse()

	input := collector.CollectorInput{
		Address:       *address,
		Protocol:      *protocol,
		MaxBufferSize: 65535,
		DecodingMode:  collector.DecodingModeStrict,
	}
	if *lenient {
		input.DecodingMode = collector.DecodingModeLenientKeepUnknown
	}
	var err error
	if *cert != "" {
		input.IsEncrypted = true
		if input.ServerCert, err = os.ReadFile(*cert); err != nil {
			return err
		}
		if input.ServerKey, err = os.ReadFile(*key); err != nil {
			return err
		}
	}
	if *ca != "" {
		if input.CACert, err = os.ReadFile(*ca); err != nil {
			return err
		}
	}
	registry.LoadRegistry()
	process, err := collector.InitCollectingProcess(input)
	if err != nil {
		return err
	}
	go process.Start()
	if err := announce(process); err != nil {
		return err
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	out := json.NewEncoder(os.Stdout)
	for message := range process.GetMsgChan() {
		if err := print(out, message); err != nil {
			return err
		}
	}
	return nil
}

// announce prints the address once the collector listens; it has no other way to say so.
func announce(process *collector.CollectingProcess) error {
	for range 500 {
		if address := process.GetAddress(); address != nil {
			fmt.Printf("{\"listening\":%q}\n", address.String())
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("the collector does not listen: its log says why")
}

func print(out *json.Encoder, message *entities.Message) error {
	set := message.GetSet()
	if set.GetSetType() != entities.Data {
		return nil
	}
	for _, data := range set.GetRecords() {
		line := record{
			Exporter:   message.GetExportAddress(),
			Domain:     message.GetObsDomainID(),
			Sequence:   message.GetSequenceNum(),
			ExportTime: message.GetExportTime(),
		}
		for _, element := range data.GetOrderedElementList() {
			line.Elements = append(line.Elements, [2]any{element.GetName(), value(element)})
		}
		if err := out.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

func value(element entities.InfoElementWithValue) any {
	switch element.GetDataType() {
	case entities.Unsigned8:
		return element.GetUnsigned8Value()
	case entities.Unsigned16:
		return element.GetUnsigned16Value()
	case entities.Unsigned32, entities.DateTimeSeconds:
		return element.GetUnsigned32Value()
	case entities.Unsigned64, entities.DateTimeMilliseconds:
		return element.GetUnsigned64Value()
	case entities.Ipv4Address, entities.Ipv6Address:
		return element.GetIPAddressValue().String()
	case entities.String:
		return element.GetStringValue()
	default:
		return fmt.Sprintf("%x", element.GetOctetArrayValue())
	}
}
