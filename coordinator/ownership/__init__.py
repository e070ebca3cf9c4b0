"""Who may act: pure rules of epochs, validity and settlement (DESIGN section 4)."""
