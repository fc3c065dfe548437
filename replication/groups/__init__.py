"""The roads on which an owner's frames reach all who follow it, behind one contract."""
