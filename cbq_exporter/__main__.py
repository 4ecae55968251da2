"""``python -m cbq_exporter``."""

from cbq_exporter.cli.main import main

if __name__ == "__main__":
    main()
