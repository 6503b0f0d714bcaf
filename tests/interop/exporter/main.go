// Exporter sends the records on its standard input by go-ipfix's exporter.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vmware/go-ipfix/pkg/entities"
	"github.com/vmware/go-ipfix/pkg/exporter"
	"github.com/vmware/go-ipfix/pkg/registry"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	address := flag.String("address", "", "the collector")
	protocol := flag.String("protocol", "tcp", "tcp or udp")
	domain := flag.Uint("domain", 1, "observation domain")
	ca := flag.String("ca", "", "authority of the server's certificate, for TLS")
	cert := flag.String("cert", "", "certificate of the client")
	key := flag.String("key", "", "its key")
	name := flag.String("name", "", "name in the server's certificate, if not the host of the address")
	flag.Parse()

	input := exporter.ExporterInput{
		CollectorAddress:    *address,
		CollectorProtocol:   *protocol,
		ObservationDomainID: uint32(*domain),
	}
	if *ca != "" {
		config, err := tls(*ca, *cert, *key, *name)
		if err != nil {
			return err
		}
		input.TLSClientConfig = config
	}
	registry.LoadRegistry()
	process, err := exporter.InitExportingProcess(input)
	if err != nil {
		return err
	}
	defer process.CloseConnToCollector()
	templates := make(map[string]uint16)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := send(process, templates, lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}

func tls(ca, cert, key, name string) (*exporter.ExporterTLSClientConfig, error) {
	config := &exporter.ExporterTLSClientConfig{ServerName: name}
	for path, data := range map[string]*[]byte{ca: &config.CAData, cert: &config.CertData, key: &config.KeyData} {
		if path == "" {
			continue
		}
		var err error
		if *data, err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// send sends one record, and its template where that is new.
func send(process *exporter.ExportingProcess, templates map[string]uint16, line []byte) error {
	var fields [][2]any
	decoder := json.NewDecoder(strings.NewReader(string(line)))
	decoder.UseNumber()
	if err := decoder.Decode(&fields); err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	var names []string
	var elements []*entities.InfoElement
	var values []entities.InfoElementWithValue
	for _, field := range fields {
		name, _ := field[0].(string)
		element, err := element(name)
		if err != nil {
			return err
		}
		value, err := value(element, field[1])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		names, elements, values = append(names, name), append(elements, element), append(values, value)
	}
	key := strings.Join(names, " ")
	id, known := templates[key]
	if !known {
		id = process.NewTemplateID()
		templates[key] = id
		set, err := entities.MakeTemplateSet(id, elements)
		if err != nil {
			return err
		}
		if _, err := process.SendSet(set); err != nil {
			return err
		}
	}
	set, err := entities.MakeDataSet(id, values)
	if err != nil {
		return err
	}
	_, err = process.SendSet(set)
	return err
}

// element finds a name in the registries: IANA's, Antrea's, and IANA's reverse.
func element(name string) (*entities.InfoElement, error) {
	for _, enterprise := range []uint32{registry.IANAEnterpriseID, registry.AntreaEnterpriseID, registry.IANAReversedEnterpriseID} {
		if element, err := registry.GetInfoElement(name, enterprise); err == nil {
			return element, nil
		}
	}
	return nil, fmt.Errorf("%s is in none of go-ipfix's registries", name)
}

func value(element *entities.InfoElement, value any) (entities.InfoElementWithValue, error) {
	number := func() uint64 {
		var parsed uint64
		fmt.Sscan(fmt.Sprint(value), &parsed)
		return parsed
	}
	text := fmt.Sprint(value)
	switch element.DataType {
	case entities.Unsigned8:
		return entities.NewUnsigned8InfoElement(element, uint8(number())), nil
	case entities.Unsigned16:
		return entities.NewUnsigned16InfoElement(element, uint16(number())), nil
	case entities.Unsigned32:
		return entities.NewUnsigned32InfoElement(element, uint32(number())), nil
	case entities.DateTimeSeconds:
		return entities.NewDateTimeSecondsInfoElement(element, uint32(number())), nil
	case entities.Unsigned64:
		return entities.NewUnsigned64InfoElement(element, number()), nil
	case entities.DateTimeMilliseconds:
		return entities.NewDateTimeMillisecondsInfoElement(element, number()), nil
	case entities.Ipv4Address, entities.Ipv6Address:
		return entities.NewIPAddressInfoElement(element, net.ParseIP(text)), nil
	case entities.String:
		return entities.NewStringInfoElement(element, text), nil
	default:
		return nil, fmt.Errorf("no value of this type")
	}
}
